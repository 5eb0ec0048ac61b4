# SPDX-License-Identifier: GPL-2.0-or-later
"""What a domain's own libvirt description says to us, as XML in a namespace of ours. docs/libvirt.md has it.

<diffengine:domain xmlns:diffengine="urn:diffengine:domain" enabled="true" trust_group="web"/>
"""

from xml.etree import ElementTree

from diffengine.service.configuration import ConfigurationError, Values, domain_words
from diffengine.settings import value_of

NAMESPACE = "urn:diffengine:domain"
ELEMENTS = ("domain", f"{{{NAMESPACE}}}domain")
MOST_BYTES = 16 * 1024


def words_of(untrusted_xml: str, uuid: str) -> Values:
    """The keys of the domain's table that it says. Raises ConfigurationError."""
    where = f"libvirt's metadata of domain {uuid}"
    if len(untrusted_xml) > MOST_BYTES or "<!" in untrusted_xml:
        raise ConfigurationError(f"{where}: must be one element of at most {MOST_BYTES} bytes, without declarations")
    try:
        element = ElementTree.fromstring(untrusted_xml)
    except ElementTree.ParseError as error:
        raise ConfigurationError(f"{where}: not XML: {error}") from error
    if element.tag not in ELEMENTS or len(element) or (element.text or "").strip():
        raise ConfigurationError(f"{where}: must be one element `domain` with attributes and nothing in it")
    return domain_words({key: value_of(value) for key, value in element.attrib.items()}, where)

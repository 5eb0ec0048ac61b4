# SPDX-License-Identifier: GPL-2.0-or-later
"""The engine on a host that was there before it, with guests that run and pages that are out."""

from diffengine.service.attached import AttachedEngine, DomainTerms, connect, own_terms, serve

__all__ = ["AttachedEngine", "DomainTerms", "connect", "own_terms", "serve"]

#!/bin/sh
# SPDX-License-Identifier: GPL-2.0-or-later
# fetch_xdelta3.sh DIRECTORY
#
# Debian has xdelta3 as a program only; to time it in process, its source is needed. This gets Debian's source package
# from the mirror that the system uses, checked against the archive's key, with package lists of its own in DIRECTORY:
# no root, and the system's lists stay as they are.
# Leaves DIRECTORY/source/xdelta3.c, or says why not and exits 1; the benchmark then goes on without this peer.
set -eu
mkdir -p "$1/lists/partial" "$1/cache/archives/partial"
cd "$1"
test -f source/xdelta3.c && exit 0
here=$(pwd)
key=/usr/share/keyrings/debian-archive-keyring.gpg
# shellcheck disable=SC2016 # the names in the format are apt's
apt-get indextargets --format 'deb-src [signed-by='"$key"'] $(REPO_URI) $(CODENAME) main' \
    'Created-By: Packages' 'Component: main' 'Origin: Debian' | sort -u > sources.list
own_apt() {
    apt-get -q -o Dir::Etc::SourceList="$here/sources.list" -o Dir::Etc::SourceParts=/dev/null \
        -o Acquire::Retries=0 -o Acquire::http::Timeout=15 -o APT::Sandbox::User="$(id -un)" \
        -o Dir::State::Lists="$here/lists" -o Dir::Cache="$here/cache" "$@"
}
rm -rf xdelta3-*/
if test -s sources.list && own_apt update > log 2>&1 && own_apt source xdelta3 >> log 2>&1; then
    rm -rf source
    mv xdelta3-*/ source
    test -f source/xdelta3.c && exit 0
fi
echo "xdelta3's source could not be had (see $here/log, or run apt-get update first); going on without it" >&2
exit 1

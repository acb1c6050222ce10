#!/bin/bash
# Text to calibrate kvtc on, of many kinds: prose, humour and verse, law, manuals in three languages, Python, Go, C++ and
# this repository's own pages. Nothing of it is of the books in examples/texts. Needs apt, groff and a network.
#   bench/lossy_text.sh FOLDER && firn calibrate $(printf -- '--text %s ' FOLDER/*) ...
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
tree=$(cd "$(dirname "$0")/.." && pwd)
packages=$(mktemp -d)
trap 'rm -rf "$packages"' EXIT
cd "$packages"
apt-get download -qq fortunes perl-doc manpages-fr manpages-de doc-debian golang-1.19-src libpython3.11-stdlib \
  libpython3.11-minimal
for package in *.deb; do dpkg-deb -x "$package" x; done
share=x/usr/share fortunes=x/usr/share/games/fortunes pods=$(echo x/usr/share/perl/*/pod)
quotes() { grep -hv '^%$' "$@"; }
manual() { gunzip -c "$share/man/$1/man7/signal.7.gz" | groff -Kutf8 -man -Tutf8 2>/dev/null | col -bx | sed 's/  */ /g'; }
quotes "$fortunes"/{pratchett,science,people} > "$folder/fortunes-a.txt"
quotes "$fortunes/songs-poems" > "$folder/fortunes-b.txt"
quotes "$fortunes/startrek" > "$folder/fortunes-c.txt"
quotes "$fortunes"/{wisdom,politics} > "$folder/fortunes-d.txt"
cat "$pods"/{perlfaq3,perlretut}.pod > "$folder/perl.pod"
cp "$pods/perlfaq7.pod" "$folder/faq.pod"
for language in fr de; do manual $language > "$folder/man-$language.txt"; done
gunzip -c $share/doc/debian/{debian-manifesto,constitution.txt,social-contract.txt}.gz > "$folder/debian.txt"
cp $share/go-1.19/src/net/http/server.go "$folder/server.go"
cat x/usr/lib/python3.11/{statistics,argparse}.py > "$folder/stdlib.py"
cp /usr/share/common-licenses/GPL-3 "$folder/gpl.txt"
cat "$tree"/docs/*.md > "$folder/docs.md"
cat "$tree"/core/*.cpp > "$folder/core.cpp"

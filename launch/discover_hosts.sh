#!/usr/bin/env bash
# Tells horovodrun the hosts in a file, which it asks for each second: edit the file, and workers come and go.
#   bash launch/discover_hosts.sh HOSTFILE
# A line is `host slots=N`, `host:N` or `host` (one slot); empty lines and comments (#) are passed over.
set -euo pipefail
[ $# = 1 ] || { echo "discover_hosts.sh: usage: bash launch/discover_hosts.sh HOSTFILE" >&2; exit 2; }
awk '
  { sub(/#.*/, "") }
  !NF { next }
  match($0, /^[ \t]*[^ \t:]+([ \t]+slots[ \t]*=[ \t]*[0-9]+|[ \t]*:[ \t]*[0-9]+)?[ \t]*$/) {
    line = $0; gsub(/[ \t]*slots[ \t]*=[ \t]*/, ":", line); gsub(/[ \t]/, "", line)
    if (line !~ /:/) line = line ":1"
    if (line !~ /:0+$/) print line
    next
  }
  { print "discover_hosts.sh: " FILENAME ":" FNR ": \"" $0 "\" is not host slots=N or host:N" >"/dev/stderr"; exit 1 }
' "$1"

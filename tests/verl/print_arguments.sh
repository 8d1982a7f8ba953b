#!/usr/bin/env bash
# Stands in for Python in the tests of the run scripts: prints its arguments, one a line.
printf '%s\n' "$@"

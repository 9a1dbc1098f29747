#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The structs of lamprey_ctypes.py are C's, field by field. Argument: the program struct_layout."""

import ctypes
import subprocess
import sys

import lamprey_ctypes


def of_python(name, struct):
    for field, *_ in struct._fields_:
        place = getattr(struct, field)
        yield f"{name} {field} {place.offset} {place.size}"
    yield f"{name} - {ctypes.sizeof(struct)} 0"


def main():
    c = subprocess.run(sys.argv[1:], check=True, capture_output=True, text=True).stdout.splitlines()
    python = [line for name, struct in lamprey_ctypes.STRUCTS.items() for line in of_python(name, struct)]
    for line in sorted(set(c) ^ set(python)):
        print("only in", "C:" if line in c else "Python:", line)
    sys.exit(0 if c and sorted(c) == sorted(python) else 1)


if __name__ == "__main__":
    main()

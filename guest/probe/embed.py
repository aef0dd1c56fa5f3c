#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Turn a flat binary into a C array: embed.py INPUT OUTPUT.c NAME HEADER.

HEADER is included first: it declares NAME and NAME_size.
"""
import pathlib
import sys


def main():
    source, target, name, header = sys.argv[1:]
    data = pathlib.Path(source).read_bytes()
    if not data:
        sys.exit(f"{source}: empty")
    lines = [
        "/* Generated from the payload by guest/probe/embed.py. */",
        f'#include "{header}"',
        "",
        f"const uint8_t {name}[] = {{",
    ]
    for at in range(0, len(data), 12):
        row = ", ".join(f"0x{byte:02x}" for byte in data[at:at + 12])
        lines.append(f"\t{row},")
    lines += ["};", f"const size_t {name}_size = sizeof({name});", ""]
    pathlib.Path(target).write_text("\n".join(lines))


main()

# SPDX-License-Identifier: Apache-2.0
"""Shared libraries that define what a program needs and do nothing.

Debian's fio is linked with the clients of half a dozen storage systems; with
all they need in turn that is some 90 MB, which a guest would have to unpack at
every boot.  A guest's fio uses none of them, but the dynamic linker insists
that they are there and define every symbol.  So the initramfs gets libraries
of the same names and symbol versions whose functions say that they are not
there and end the program.
"""

import re
import subprocess
import tempfile
from pathlib import Path

from . import LabError

_PROLOGUE = r"""
#include <stdlib.h>
#include <unistd.h>
static void missing(void)
{
	static const char text[] =
		"this engine's library is not in the lab's initramfs\n";

	if (write(2, text, sizeof(text) - 1) < 0)
		abort();
	_exit(1);
}
"""


def _output(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True,
                          stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(command)} failed:\n{done.stdout.strip()}")
    return done.stdout


def needed(program):
    """The libraries a program names itself."""
    return re.findall(r"\(NEEDED\).*\[(.*)\]",
                      _output("readelf", "-dW", str(program)))


def _version_owner(program):
    """Which library each symbol version is expected from."""
    owner, library = {}, None
    text = _output("readelf", "-VW", str(program))
    for line in text.partition(".gnu.version_r")[2].splitlines():
        if match := re.search(r"File: (\S+)", line):
            library = match[1]
        elif match := re.search(r"Name: (\S+)", line):
            owner[match[1]] = library
    return owner


def _defined(library):
    text = _output("nm", "-D", "--defined-only", str(library))
    return {line.split()[-1].split("@")[0] for line in text.splitlines()}


def _undefined(program):
    """Pairs of symbol and version ("" without) the program cannot do without;
    weak ones may stay undefined."""
    text = _output("nm", "-D", "--undefined-only", "--with-symbol-versions",
                   str(program))
    for line in text.splitlines():
        kind, symbol = line.split()[-2:]
        if kind == "U":
            name, _, version = symbol.partition("@")
            yield name, version.lstrip("@")


def _build(soname, symbols, directory):
    """One library; symbols is {version: [name, ...]}."""
    source = directory / "standin.c"
    script = directory / "standin.map"
    target = directory / soname
    code, versions = [_PROLOGUE], []
    for version, names in symbols.items():
        code += [f"void {name}(void) {{ missing(); }}\n" for name in names]
        if version:
            versions.append(f"{version} {{ global: {'; '.join(names)}; }};\n")
    source.write_text("".join(code))
    script.write_text("".join(versions))
    command = ["gcc", "-shared", "-fPIC", "-O1", "-s", "-fno-builtin", "-w",
               f"-Wl,-soname,{soname}", "-o", str(target), str(source)]
    if versions:
        command.insert(1, f"-Wl,--version-script={script}")
    _output(*command)
    return target.read_bytes()


def stand_ins(program, absent, present):
    """Make libraries for the absent ones of those a program needs.

    absent are names, present paths of the libraries that will be there.
    Returns {name: bytes}.
    """
    owner = _version_owner(program)
    available = set().union(*(_defined(path) for path in present))
    wanted = {soname: {} for soname in absent}
    for name, version in _undefined(program):
        # Unversioned symbols are looked up everywhere: any will do.
        soname = owner.get(version) if version else None
        if not version and name not in available:
            soname = next((s for s in absent if s not in owner.values()),
                          absent[0])
        if soname in wanted:
            wanted[soname].setdefault(version, []).append(name)
    with tempfile.TemporaryDirectory() as scratch:
        return {soname: _build(soname, symbols, Path(scratch))
                for soname, symbols in wanted.items()}

# SPDX-License-Identifier: Apache-2.0
"""Fetch Debian packages of another suite with the machine's own mirror.

apt keeps everything it knows in directories that can be named on its command
line.  So a suite the machine is not configured for (backports) is read through
a private source list made from the machine's own Debian entries, and private
list and cache directories.  Proxies, credentials and keyrings stay those of
the machine; its configuration and package lists are not changed, and no
mirror has to be named here.
"""

import os
import re
import subprocess
from pathlib import Path

from . import LabError

RELEASE = "bookworm"


class Source:
    """One entry of a source list, in the deb822 vocabulary."""

    def __init__(self, uris, suites, components, options):
        self.uris = uris
        self.suites = suites
        self.components = components
        self.options = options          # {"Signed-By": ..., ...}

    def offers_release(self):
        """Is it a Debian archive of our release, not a third party's?"""
        return RELEASE in self.suites and "main" in self.components

    def stanza(self, suite):
        """The same archive, another suite."""
        lines = ["Types: deb", "URIs: " + " ".join(self.uris),
                 "Suites: " + suite, "Components: main",
                 "Architectures: amd64"]
        for name, value in self.options.items():
            lines.append(f"{name}: {value}")
        return "\n".join(lines) + "\n"


# Options worth keeping; one-line lists spell them in lower case.
_KEPT = {"signed-by": "Signed-By", "trusted": "Trusted",
         "check-valid-until": "Check-Valid-Until",
         "allow-insecure": "Allow-Insecure"}


def parse_one_line(text):
    """Entries of the classic format: deb [options] uri suite component..."""
    for line in text.splitlines():
        line = line.split("#", 1)[0].strip()
        match = re.match(r"deb\s+(?:\[([^\]]*)\]\s+)?(\S+)\s+(\S+)\s*(.*)$",
                         line)
        if not match:
            continue
        options = {}
        for word in (match[1] or "").split():
            name, _, value = word.partition("=")
            if name.lower() in _KEPT:
                options[_KEPT[name.lower()]] = value.replace(",", " ")
        yield Source([match[2]], [match[3]], match[4].split(), options)


def parse_deb822(text):
    """Entries of the stanza format; multi-line fields hold inline keys."""
    for stanza in re.split(r"\n\s*\n", text):
        fields, name = {}, None
        for line in stanza.splitlines():
            if line.startswith("#") or not line.strip():
                continue
            if line[0].isspace():
                if name:
                    fields[name] += "\n" + line
                continue
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
        if "deb" not in fields.get("types", "").split():
            continue
        if fields.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        options = {_KEPT[k]: v for k, v in fields.items() if k in _KEPT}
        yield Source(fields.get("uris", "").split(),
                     fields.get("suites", "").split(),
                     fields.get("components", "").split(), options)


def machine_sources(etc=Path("/etc/apt")):
    """The machine's own entries for our release, in order."""
    found = []
    lists = [etc / "sources.list"]
    parts = etc / "sources.list.d"
    if parts.is_dir():
        lists += sorted(parts.iterdir())
    for path in lists:
        try:
            if path.suffix == ".sources":
                found += parse_deb822(path.read_text())
            elif path.suffix == ".list":
                found += parse_one_line(path.read_text())
        except OSError:
            continue
    return [s for s in found if s.offers_release()]


class PrivateApt:
    """apt for one suite, with all of its state below one directory."""

    def __init__(self, root, suite):
        self.root = Path(root)
        self.suite = suite
        self._updated = False

    def _prepare(self):
        sources = machine_sources()
        if not sources:
            raise LabError(
                f"no Debian {RELEASE} archive in /etc/apt/sources.list or "
                f"/etc/apt/sources.list.d: the lab takes its kernels from "
                f"there; add one")
        for name in ("lists/partial", "archives/partial", "parts"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        for name in ("status", "sources.list"):
            (self.root / name).touch()
        (self.root / "parts/lab.sources").write_text(
            "\n".join(s.stanza(self.suite) for s in sources))

    def _run(self, tool, *args, cwd=None):
        root = self.root
        settings = {
            "Dir::Etc::SourceList": root / "sources.list",
            "Dir::Etc::SourceParts": root / "parts",
            "Dir::Etc::Preferences": "/dev/null",
            "Dir::Etc::PreferencesParts": "/dev/null",
            "Dir::State": root,
            "Dir::State::Lists": root / "lists",
            "Dir::State::status": root / "status",
            "Dir::Cache": root,
            "Dir::Cache::Archives": root / "archives",
            "Dir::Cache::pkgcache": "",
            "Dir::Cache::srcpkgcache": "",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            # The files are the caller's, apt's own user cannot write them.
            "APT::Sandbox::User": "",
            "Acquire::Languages": "none",
            # The archive's hooks serve the system's lists, not these.
            "APT::Update::Post-Invoke-Success": "",
        }
        command = [tool, "-q"]
        for name, value in settings.items():
            command += ["-o", f"{name}={value}"]
        env = dict(os.environ, LC_ALL="C", DEBIAN_FRONTEND="noninteractive")
        done = subprocess.run(command + list(args), cwd=cwd, env=env,
                              stdin=subprocess.DEVNULL, text=True,
                              stdout=subprocess.PIPE,
                              stderr=subprocess.PIPE, check=False)
        if done.returncode:
            raise LabError(f"{tool} {' '.join(args)} ({self.suite}) failed:\n"
                           f"{(done.stdout + done.stderr).strip()}")
        return done.stdout

    def _update(self):
        if self._updated:
            return
        self._prepare()
        try:
            self._run("apt-get", "update")
        except LabError:
            # A third party's archive under our release's name may lack the
            # suite; what counts is whether the package is found.
            if not any((self.root / "lists").glob("*_Packages*")):
                raise
        self._updated = True

    def _field(self, package, field):
        text = self._run("apt-cache", "show", "--no-all-versions", package)
        match = re.search(rf"^{field}: (.*)$", text, re.M)
        if not match:
            raise LabError(f"{package} ({self.suite}) has no {field} field")
        return match[1]

    def resolve_kernel(self, meta):
        """The package a kernel meta package stands for."""
        self._update()
        depends = self._field(meta, "Depends")
        match = re.search(r"\blinux-image-[0-9]\S*", depends)
        if not match:
            raise LabError(f"{meta} depends on no kernel image: {depends}")
        return match[0]

    def download(self, package, into):
        """Fetch a package, checked against the signed index; its path."""
        self._update()
        into = Path(into)
        self._run("apt-get", "download", package, cwd=into)
        files = list(into.glob(f"{package}_*.deb"))
        if len(files) != 1:
            raise LabError(f"apt-get download {package} left {len(files)} "
                           f"files in {into}")
        return files[0]

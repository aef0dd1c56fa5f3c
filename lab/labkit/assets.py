# SPDX-License-Identifier: Apache-2.0
"""The cache of what the lab boots: kernels, initramfs images, guest tools.

    kernels/VERSION/     bzImage, vmlinux, release, modules/RELEASE/
    images/VERSION/      l1.cpio, guest.cpio, guest-fio.cpio
    bin/                 the static programs, runnable on the machine too

Kernels are fetched once and kept.  Images depend on files of this repository,
so a stamp holds a digest of all that went into them.  Everything is made
under another name and renamed; a lock file serialises makers, and somebody who
finds all stamps current does not even take it.
"""

import contextlib
import fcntl
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from . import LabError, cpio, debian, debroot, kernel, standin

REPO = Path(__file__).resolve().parent.parent.parent
META = "linux-image-cloud-amd64"
SUITES = {"6.1": debian.RELEASE, "6.12": debian.RELEASE + "-backports"}
BUSYBOX = Path("/bin/busybox")

# What the nested host loads to reach its root, and for KVM after that.  All
# others are loadable by modprobe later.
L1_BOOT = ["virtio_pci", "virtio_console", "virtio_blk", "virtiofs", "overlay"]
L1_KVM = ["kvm_amd", "loop"]

# What a guest may ask for; init loads what matches the devices present.
GUEST_MODULES = [
    "virtio_pci", "virtio_mmio", "virtio_blk", "virtio_rng", "virtio_net",
    "virtio_console", "virtio_balloon", "virtio_mem", "virtio_pmem",
    "virtiofs", "vmw_vsock_virtio_transport", "button", "evdev",
    "pvpanic_mmio", "wdat_wdt",
]
FIO = "/usr/bin/fio"
FIO_PROGRAMS = [FIO, "/usr/sbin/mkfs.ext4", "/usr/sbin/e2fsck",
                "/usr/sbin/blkdiscard"]
# Clients of storage systems that no guest here has; see standin.py.
FIO_WITHOUT = ("libgfapi", "libnbd", "libibverbs", "librdmacm", "librados",
               "librbd", "libpmem")
TOOLS = ["init", "memtouch", "blkverify", "vsocktest", "nettest"]


def cache_directory():
    named = os.environ.get("QUIRE_LAB_CACHE")
    return Path(named).resolve() if named else REPO / "build/lab"


def _write(path, data, mode=0o644):
    """A file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_bytes(data)
    temporary.chmod(mode)
    temporary.rename(path)


def _run(*command):
    done = subprocess.run([str(c) for c in command], text=True, check=False,
                          stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                          stderr=subprocess.STDOUT)
    if done.returncode:
        raise LabError(f"{' '.join(map(str, command))} failed:\n"
                       f"{done.stdout.strip()}")
    return done.stdout


def _libraries(program):
    """What the dynamic linker would load, {name: path}."""
    found = {}
    for line in _run("ldd", program).splitlines():
        words = line.split()
        if "=>" in words and words[2].startswith("/"):
            found[words[0]] = words[2]
        elif words[0].startswith("/"):
            found[os.path.basename(words[0])] = words[0]
    return found


class Assets:
    """The cache, and how each part of it is made."""

    def __init__(self, say=lambda text: None):
        self.cache = cache_directory()
        self.bin = self.cache / "bin"
        self._say = say

    # Where things are.

    def kernel(self, version):
        return self.cache / "kernels" / version

    def image(self, version, name):
        return self.cache / "images" / version / f"{name}.cpio"

    def modules(self, version):
        return self.kernel(version) / "modules"

    # Making them.

    def ensure(self, refresh=False):
        """Make whatever is missing or out of date."""
        if not refresh and self._current():
            return
        self.cache.mkdir(parents=True, exist_ok=True)
        with self._locked():
            for version in SUITES:
                if refresh or not self._has_kernel(version):
                    self._fetch_kernel(version)
            if not self._current():
                self._build_tools()
                for version in SUITES:
                    self._build_images(version)
                _write(self.cache / "stamp", self._digest().encode())

    @property
    def debian(self):
        """The Debian system for guests; see ensure_debian()."""
        return self.cache / "debian"

    def ensure_debian(self, version="6.1"):
        """Make the Debian system, for a guest kernel, unless it is there."""
        self.ensure()
        if self.has_debian(version):
            return
        with self._locked():
            if self.has_debian(version):
                return
            release = (self.kernel(version) / "release").read_text().strip()
            modules = kernel.Modules(self.modules(version) / release)
            modules.wanted = GUEST_MODULES
            with tempfile.TemporaryDirectory(dir=self.cache,
                                             prefix=".debian-") as scratch:
                scratch = Path(scratch)
                made = scratch / "made"
                made.mkdir()
                debroot.make(made, scratch, modules, self._say)
                (made / "stamp").write_text(self._debian_digest(version))
                if self.debian.exists():
                    self.debian.rename(scratch / "replaced")
                made.rename(self.debian)

    def has_debian(self, version="6.1"):
        try:
            stamp = (self.debian / "stamp").read_text()
            return stamp == self._debian_digest(version)
        except OSError:
            return False

    def _debian_digest(self, version):
        digest = hashlib.sha256()
        digest.update((REPO / "lab/labkit/debroot.py").read_bytes())
        digest.update(" ".join(GUEST_MODULES).encode())
        digest.update((self.kernel(version) / "release").read_bytes())
        return digest.hexdigest()

    @contextlib.contextmanager
    def _locked(self):
        with open(self.cache / "lock", "w", encoding="ascii") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._say("waiting for another run that fills the cache")
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _has_kernel(self, version):
        return (self.kernel(version) / "release").exists()

    def _current(self):
        if not all(self._has_kernel(v) for v in SUITES):
            return False
        try:
            return (self.cache / "stamp").read_text() == self._digest()
        except OSError:
            return False

    def _digest(self):
        """Of all that the images are made from."""
        digest = hashlib.sha256()
        lab = REPO / "lab"
        sources = [*sorted((REPO / "guest/tools").glob("*.[ch]")),
                   *sorted((lab / "l1").iterdir()),
                   *(lab / "labkit" / f"{n}.py"
                     for n in ("assets", "cpio", "kernel",
                                        "standin"))]
        for path in sources:
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
        # Programs taken from the machine: their size and time will do.
        for path in [BUSYBOX, *map(Path, FIO_PROGRAMS)]:
            with contextlib.suppress(OSError):
                st = path.stat()
                digest.update(f"{path}{st.st_size}{st.st_mtime_ns}".encode())
        for version in SUITES:
            release = self.kernel(version) / "release"
            digest.update(release.read_bytes())
        return digest.hexdigest()

    def _fetch_kernel(self, version):
        suite = SUITES[version]
        self._say(f"fetching {META} of {suite}")
        with tempfile.TemporaryDirectory(dir=self.cache,
                                         prefix=".fetch-") as scratch:
            scratch = Path(scratch)
            apt = debian.PrivateApt(scratch / "apt", suite)
            package = apt.resolve_kernel(META)
            self._say(f"unpacking {package}")
            deb = apt.download(package, scratch)
            _run("dpkg-deb", "-x", deb, scratch / "tree")
            self._install_kernel(version, scratch)

    def _install_kernel(self, version, scratch):
        image = next((scratch / "tree/boot").glob("vmlinuz-*"))
        release = image.name.removeprefix("vmlinuz-")
        if not release.startswith(version + "."):
            raise LabError(f"{SUITES[version]} has kernel {release} now; "
                           f"the lab was made for {version}")
        made = scratch / "made"
        base = made / "modules"
        base.mkdir(parents=True)
        (scratch / "tree/lib/modules" / release).rename(base / release)
        # depmod wants the tree below lib/modules.
        (scratch / "tree/lib/modules" / release).symlink_to(base / release)
        _run("/sbin/depmod", "-b", scratch / "tree", release)
        data = image.read_bytes()
        (made / "bzImage").write_bytes(data)
        (made / "vmlinux").write_bytes(kernel.extract_vmlinux(data))
        header = _run("readelf", "-hl", made / "vmlinux")
        if "EXEC" not in header or "LOAD" not in header:
            raise LabError(f"vmlinux of {release} is no executable ELF file")
        (made / "release").write_text(release + "\n")
        target = self.kernel(version)
        if target.exists():
            target.rename(scratch / "replaced")
        target.parent.mkdir(exist_ok=True)
        made.rename(target)

    # Programs.

    def _build_tools(self):
        self._say("building guest tools")
        self.bin.mkdir(parents=True, exist_ok=True)
        flags = ["-std=gnu17", "-O2", "-Wall", "-Wextra", "-static", "-s",
                 "-pthread"]
        for name, sources in (
                ("quire-tools", sorted((REPO / "guest/tools").glob("*.c"))),
                ("agent", [REPO / "lab/l1/agent.c"])):
            temporary = self.bin / f".{name}.{os.getpid()}"
            try:
                _run("gcc", *flags, "-o", temporary, *sources)
                temporary.rename(self.bin / name)
            finally:
                temporary.unlink(missing_ok=True)
        for name in TOOLS[1:]:
            link = self.bin / name
            if not link.is_symlink():
                link.symlink_to("quire-tools")

    def _busybox(self, archive, applets=None):
        """busybox at /bin, with names for its applets.

        Debian's shell finds applets without links, so few are needed where
        start-up time counts.
        """
        if not BUSYBOX.exists():
            raise LabError(f"no {BUSYBOX}: run scripts/deps "
                           "(package busybox-static)")
        data = BUSYBOX.read_bytes()
        if "INTERP" in _run("readelf", "-lW", BUSYBOX):
            raise LabError(f"{BUSYBOX} is not static: run scripts/deps "
                           "(package busybox-static)")
        archive.file("bin/busybox", data, 0o755)
        for name in applets or _run(BUSYBOX, "--list").split():
            if name != "busybox":
                archive.symlink(f"bin/{name}", "busybox")

    # Images.

    def _build_images(self, version):
        release = (self.kernel(version) / "release").read_text().strip()
        self._say(f"making initramfs images for {release}")
        modules = kernel.Modules(self.modules(version) / release)
        _write(self.image(version, "l1"), self._l1_image(modules))
        guest = self._guest_image(modules)
        _write(self.image(version, "guest"), guest.bytes())
        self._add_fio(guest)
        _write(self.image(version, "guest-fio"), guest.bytes())

    def _l1_image(self, modules):
        archive = cpio.Archive()
        for name in ("proc", "sys", "dev", "modules"):
            archive.directory(name)
        archive.node("dev/console", "c", 5, 1)
        self._busybox(archive)
        boot = modules.closure(L1_BOOT)
        kvm = [m for m in modules.closure(L1_KVM) if m not in boot]
        for name, members in (("boot", boot), ("kvm", kvm)):
            archive.file(f"modules/{name}",
                         "".join(m + "\n" for m in members).encode())
            for module in members:
                archive.file(f"modules/{module}.ko", modules.read(module))
        archive.file("init", (REPO / "lab/l1/init").read_bytes(), 0o755)
        archive.file("agent", (self.bin / "agent").read_bytes(), 0o755)
        return archive.bytes()

    def _guest_image(self, modules):
        archive = cpio.Archive()
        for name in ("proc", "sys", "dev", "tmp", "run", "mnt", "root", "etc"):
            archive.directory(name)
        archive.node("dev/console", "c", 5, 1)
        archive.file("bin/quire-tools",
                     (self.bin / "quire-tools").read_bytes(), 0o755)
        for name in TOOLS:
            archive.symlink(f"bin/{name}", "quire-tools")
        archive.symlink("init", "bin/quire-tools")
        self._busybox(archive, ["sh", "modprobe", "mount", "umount"])
        archive.symlink("sbin", "bin")
        names = modules.closure(GUEST_MODULES)
        where = f"lib/modules/{modules.release}"
        depends = []
        for name in names:
            archive.file(f"{where}/{name}.ko", modules.read(name))
            needed = reversed(modules.depends(name))
            depends.append(f"{name}.ko:" + "".join(
                f" {n}.ko" for n in needed) + "\n")
        archive.file(f"{where}/modules.dep", "".join(depends).encode())
        archive.file(f"{where}/modules.alias", "".join(
            line + "\n" for line in modules.aliases(names)).encode())
        return archive

    def _add_fio(self, archive):
        """Programs of the machine with their libraries."""
        libraries = {}
        for program in FIO_PROGRAMS:
            if not os.path.exists(program):
                raise LabError(f"no {program}: run scripts/deps")
            archive.file(f"bin/{os.path.basename(program)}",
                         Path(program).read_bytes(), 0o755)
            if program != FIO:
                libraries.update(_libraries(program))
        direct = standin.needed(FIO)
        absent = [n for n in direct if n.startswith(FIO_WITHOUT)]
        for soname, path in _libraries(FIO).items():
            if soname in direct and soname not in absent:
                libraries.update({soname: path}, **_libraries(path))
        made = standin.stand_ins(FIO, absent, libraries.values())
        for soname, path in sorted(libraries.items()):
            archive.file(path, Path(path).read_bytes(), 0o755)
        for soname, data in sorted(made.items()):
            archive.file(f"lib/x86_64-linux-gnu/{soname}", data, 0o755)
        config = Path("/etc/mke2fs.conf")
        if config.exists():
            archive.file(str(config), config.read_bytes())

    # What a command is told about them.

    def environment(self, default="6.1"):
        """The variables a lab command finds."""
        env = {}
        for version in SUITES:
            suffix = "_" + version.replace(".", "_")
            values = {
                "GUEST_KERNEL": self.kernel(version) / "bzImage",
                "GUEST_VMLINUX": self.kernel(version) / "vmlinux",
                "GUEST_INITRD": self.image(version, "guest"),
                "GUEST_INITRD_FIO": self.image(version, "guest-fio"),
            }
            for name, path in values.items():
                env[name + suffix] = str(path)
                if version == default:
                    env[name] = str(path)
        env["GUEST_TOOLS"] = str(self.bin)
        if self.has_debian():
            env["GUEST_DEBIAN"] = str(self.debian)
        return env

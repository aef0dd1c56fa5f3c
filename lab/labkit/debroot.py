# SPDX-License-Identifier: Apache-2.0
"""A Debian system for guests: a directory tree, and a disk image of it.

debootstrap makes it from the machine's own mirror.  It is a real one, with
systemd, udev, dpkg and apt; what is left out is what only takes time in an
emulated guest (documentation, translations, timers).  root has no password.

stress-ng comes without what Debian's depends on for its graphics test, which
is 200 MB: stand-ins for those libraries (standin.py), as for the lab's fio.
"""

import os
import shutil
import subprocess
from pathlib import Path

from . import LabError, debian, standin

INCLUDE = ("systemd-sysv", "udev", "kmod")
# To be installed in the guest: maintainer scripts, no dependencies beyond
# what is there.
TO_INSTALL = ("less", "hello")
STRESS = ("stress-ng", "libapparmor1", "libbsd0", "libmd0", "libipsec-mb1",
          "libjpeg62-turbo", "libjudydebian1", "libsctp1")
# Modules that the guest's own udev asks for beyond those of the initramfs.
MODULES = ("autofs4", "loop", "overlay")
# Units that do something later, for hardware or a console that no guest has, or
# that these guests do without: each process takes seconds where the root is a
# directory and the guest an emulated host's.
MASKED = (
    "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
    "e2scrub_all.timer", "e2scrub_reap.service", "fstrim.timer",
    "systemd-tmpfiles-clean.timer", "getty@tty1.service",
    "systemd-journal-flush.service", "systemd-update-utmp.service",
    "systemd-update-utmp-runlevel.service", "systemd-pcrphase.service",
    "systemd-pcrphase-sysinit.service", "systemd-pstore.service",
    "systemd-random-seed.service", "systemd-sysctl.service",
    "systemd-sysusers.service", "systemd-modules-load.service",
    "systemd-boot-system-token.service", "kmod-static-nodes.service",
    "modprobe@.service", "dev-hugepages.mount", "dev-mqueue.mount",
    "sys-kernel-debug.mount", "sys-kernel-tracing.mount",
    "sys-kernel-config.mount", "sys-fs-fuse-connections.mount",
    "proc-sys-fs-binfmt_misc.automount")
DROPPED = ("usr/share/doc", "usr/share/man", "usr/share/locale",
           "usr/share/info", "usr/share/zoneinfo", "usr/share/lintian",
           "var/cache/apt", "var/lib/apt/lists", "var/log/apt")
EMPTY = ("var/cache/apt/archives/partial", "var/lib/apt/lists/partial",
         "var/log/apt")
FILES = {
    "etc/hostname": "quire-guest\n",
    "etc/hosts": "127.0.0.1 localhost quire-guest\n",
    "etc/fstab": "",
    "etc/apt/sources.list": "",
    "etc/machine-id": "4ab7c0ffee0041f2a1f2d3c4b5a69788\n",
    "etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=volatile\n",
    # A slow guest is no broken one.
    "etc/systemd/system.conf.d/lab.conf":
        "[Manager]\nDefaultTimeoutStartSec=600\nDefaultTimeoutStopSec=120\n"
        "DefaultDeviceTimeoutSec=600\n",
    "etc/dpkg/dpkg.cfg.d/lab":
        "path-exclude=/usr/share/doc/*\npath-exclude=/usr/share/man/*\n"
        "path-exclude=/usr/share/locale/*\npath-exclude=/usr/share/info/*\n",
}
# Run what the kernel command line asks for once all is up, then power off.
JOB = "usr/local/sbin/quire-job"
FILES[JOB] = """\
#!/bin/sh
# quire.job64=BASE64 on the kernel command line is a shell script to run.
exec </dev/null >/dev/ttyS0 2>&1
job=
for word in $(cat /proc/cmdline); do
	case $word in
	quire.job64=*) job=${word#quire.job64=} ;;
	esac
done
echo "$job" | base64 -d >/run/quire-job
sh /run/quire-job
echo "quire-guest: exit $?"
systemctl --no-block poweroff
"""
FILES["etc/systemd/system/quire-job.service"] = f"""\
[Unit]
Description=Job from the kernel command line
ConditionKernelCommandLine=quire.job64
After=multi-user.target getty.target serial-getty@ttyS0.service
[Service]
Type=simple
ExecStart=/bin/sh /{JOB}
[Install]
WantedBy=multi-user.target
"""
SLACK_MIB = 192         # of free space in the image


def _run(*command, cwd=None):
    env = dict(os.environ, LC_ALL="C", DEBIAN_FRONTEND="noninteractive")
    done = subprocess.run([str(c) for c in command], cwd=cwd, text=True,
                          env=env, stdin=subprocess.DEVNULL, check=False,
                          stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    if done.returncode:
        tail = "\n".join(done.stdout.strip().splitlines()[-15:])
        raise LabError(f"{command[0]} failed:\n{tail}")
    return done.stdout


def _bootstrap(root, packages):
    sources = debian.machine_sources()
    if not sources:
        raise LabError(f"no Debian {debian.RELEASE} archive in /etc/apt")
    source = sources[0]
    packages.mkdir(exist_ok=True)
    command = ["debootstrap", "--variant=minbase", f"--cache-dir={packages}",
               "--include=" + ",".join(INCLUDE)]
    keyring = source.options.get("Signed-By", "")
    if keyring.startswith("/"):
        command.append(f"--keyring={keyring.split()[0]}")
    _run(*command, debian.RELEASE, root, source.uris[0])


def _add_stress(root, scratch, apt):
    """stress-ng with its libraries, unpacked; stand-ins for the rest."""
    tree = scratch / "stress"
    for package in STRESS:
        if not any((root / "var/lib/dpkg/info").glob(f"{package}*.list")):
            _run("dpkg-deb", "-x", apt.download(package, scratch), tree)
    shutil.rmtree(tree / "usr/share", ignore_errors=True)
    shutil.copytree(tree, root, symlinks=True, dirs_exist_ok=True)
    program = root / "usr/bin/stress-ng"
    places = [root / "lib/x86_64-linux-gnu", root / "usr/lib/x86_64-linux-gnu"]
    found, absent = {}, []
    for name in standin.needed(program):
        path = next((p / name for p in places if (p / name).exists()), None)
        if path:
            found[name] = path
        else:
            absent.append(name)
    made = standin.stand_ins(program, absent, found.values())
    for soname, data in made.items():
        (places[1] / soname).write_bytes(data)
        (places[1] / soname).chmod(0o755)


def _add_modules(root, modules):
    """Those a guest has a use for, with an index of their own."""
    names = modules.closure(list(modules.wanted) + list(MODULES))
    where = root / "lib/modules" / modules.release
    where.mkdir(parents=True)
    for name in names:
        (where / f"{name}.ko").write_bytes(modules.read(name))
    for index in ("modules.builtin", "modules.order",
                  "modules.builtin.modinfo"):
        source = modules.directory / index
        if source.exists():
            shutil.copy(source, where / index)
    _run("/sbin/depmod", "-b", root, modules.release)


def _configure(root):
    for name in DROPPED:
        shutil.rmtree(root / name, ignore_errors=True)
    for name in EMPTY:
        (root / name).mkdir(parents=True, exist_ok=True)
    for name, text in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    units = root / "etc/systemd/system"
    for unit in MASKED:
        link = units / unit
        link.unlink(missing_ok=True)
        link.symlink_to("/dev/null")
    wants = units / "multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / "quire-job.service").symlink_to("../quire-job.service")
    shadow = root / "etc/shadow"
    shadow.write_text("".join(
        line.replace("root:*:", "root::", 1) if line.startswith("root:")
        else line for line in shadow.read_text().splitlines(keepends=True)))


def _make_image(root, image):
    used = int(_run("du", "-sxm", "--apparent-size", root).split()[0])
    with open(image, "xb") as file:
        # Inodes and the journal take their part, too.
        os.truncate(file.fileno(), (used * 5 // 4 + SLACK_MIB) << 20)
    _run("mkfs.ext4", "-q", "-F", "-L", "quire-root",
         "-E", "lazy_itable_init=0,lazy_journal_init=0", "-d", root, image)


def make(directory, scratch, modules, say):
    """root and root.ext4 below directory; modules.wanted names the modules.

    Needs root, for owners and the debootstrap's chroot.
    """
    if os.geteuid() != 0:
        raise LabError("debootstrap needs root; run as root")
    if not shutil.which("debootstrap"):
        raise LabError("no debootstrap: run scripts/deps")
    root = directory / "root"
    say("debootstrap of a Debian system for guests (some minutes)")
    _bootstrap(root, directory.parent.parent / "debs")
    apt = debian.PrivateApt(scratch / "apt", debian.RELEASE)
    _add_stress(root, scratch, apt)
    _add_modules(root, modules)
    _configure(root)
    packages = root / "root/packages"
    packages.mkdir()
    for package in TO_INSTALL:
        apt.download(package, packages)
    say("making a disk image of it")
    _make_image(root, directory / "root.ext4")

# SPDX-License-Identifier: Apache-2.0
"""The nested host: virtiofsd and QEMU, and that they are gone afterwards.

Everything between these processes and us is an inherited descriptor: socket
pairs for console and agent, an abstract socket for vhost-user, an unlinked
file for the disk.  So there is no file to leave behind.  The processes ask
the kernel to be killed when we die, so that holds for SIGKILL too.
"""

import base64
import ctypes
import os
import signal
import socket
import subprocess
import tempfile

from . import LabError

QEMU = "/usr/bin/qemu-system-x86_64"
VIRTIOFSD = "/usr/lib/qemu/virtiofsd"

_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)

# Debian's kernel as it is, with what only costs time in an emulator left out.
# lab/README.md gives the reason for each.
KERNEL_ARGUMENTS = (
    "console=ttyS0 quiet loglevel=4 reboot=t panic=-1 oops=panic "
    "mitigations=off nokaslr no_timer_check tsc=reliable "
    "random.trust_cpu=on rcupdate.rcu_expedited=1 nowatchdog "
    "kvm_amd.npt=1 kvm.tdp_mmu=1")


def die_with_parent(sig=signal.SIGKILL):
    """Have the kernel send this process a signal when its parent ends."""
    _libc.prctl(_PR_SET_PDEATHSIG, int(sig), 0, 0, 0)


def _child_setup(parent):
    def setup():
        die_with_parent()
        # Ctrl-C is for the parent, which then ends us.
        os.setpgid(0, 0)
        if os.getppid() != parent:
            os._exit(1)
    return setup


class Machine:
    """One run of the nested host.

    After start(): agent and console are sockets, notes is a list of pipes
    with what the programs print.  stop() may be called at any time, often.
    """

    def __init__(self, assets, options):
        self._assets = assets
        self._options = options
        self._processes = {}
        self._inherited = []
        self.agent = None
        self.console = None
        self._monitor = None
        self.notes = []

    def start(self):
        for program, package in ((QEMU, "qemu-system-x86"),
                                 (VIRTIOFSD, "qemu-system-common")):
            if not os.access(program, os.X_OK):
                raise LabError(f"no {program}: run scripts/deps "
                               f"(package {package})")
        if os.geteuid() != 0:
            raise LabError("virtiofsd needs root to share / ; run as root")
        share = self._start_virtiofsd()
        self.agent, agent = socket.socketpair()
        self.console, console = socket.socketpair()
        self._monitor, monitor = socket.socketpair()
        self._inherited += [agent, console, monitor]
        self._spawn("qemu", self._qemu_command(
            share.fileno(), agent.fileno(), console.fileno(),
            monitor.fileno()))
        for mine in self._inherited:
            mine.close()
        self._inherited.clear()

    def dead(self):
        """What happened, where one of the processes has ended; or None."""
        if all(p.poll() is None for p in self._processes.values()):
            return None
        # virtiofsd ends in good order when QEMU does, which may be first.
        for name, process in self._processes.items():
            try:
                status = process.wait(timeout=2)
            except subprocess.TimeoutExpired:
                continue
            if status:
                return f"{name} ended with status {status}"
        return "the nested host crashed or shut itself down"

    def state(self, seconds=3):
        """What QEMU says of a machine that does nothing, as text."""
        said = bytearray()
        try:
            self._monitor.sendall(b"info registers\ninfo lapic\n")
            self._monitor.settimeout(seconds)
            while data := self._monitor.recv(65536):
                said += data
        except OSError:
            pass  # it has said all, or is not there
        return said.decode(errors="replace").replace("\r", "")

    def kill(self):
        """End what still runs; what was said before can be read."""
        for process in self._processes.values():
            if process.poll() is None:
                process.kill()

    def stop(self):
        self.kill()
        for process in self._processes.values():
            process.wait()
        for mine in (self.agent, self.console, self._monitor, *self.notes, *self._inherited):
            if mine:
                mine.close()
        self.notes.clear()
        self._inherited.clear()

    def _spawn(self, name, command):
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[each.fileno() for each in self._inherited],
            preexec_fn=_child_setup(os.getpid()))
        self._processes[name] = process
        self.notes.append(process.stdout)

    def _start_virtiofsd(self):
        """Share / ; returns our connected end, for QEMU.

        Connecting before virtiofsd even runs saves the second it takes to
        start, since the connection waits in the listener's queue.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind("")       # Linux picks an unused abstract name
        listener.listen(1)
        share = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        share.connect(listener.getsockname())
        self._inherited.append(listener)
        # cache=always: this side sees files as they were when it first
        # looked, which is right for a test and much faster than asking.
        self._spawn("virtiofsd", [
            VIRTIOFSD, f"--fd={listener.fileno()}", "-f",
            "-o", "source=/", "-o", "sandbox=chroot", "-o", "cache=always",
            "-o", "log_level=warn", "-o", "no_posix_lock"])
        listener.close()
        self._inherited[:] = [share]
        return share

    def _qemu_command(self, share, agent, console, monitor):
        options, assets = self._options, self._assets
        kernel = assets.kernel(options.kernel)
        threads = "single" if options.one_thread else "multi"
        command = [
            QEMU, "-nodefaults", "-no-user-config", "-display", "none",
            "-chardev", f"socket,id=monitor,fd={monitor}",
            "-mon", "chardev=monitor,mode=readline", "-no-reboot",
            "-name", "quire-lab", "-M", "q35,hpet=off,smbus=off,sata=off",
            "-accel", f"tcg,thread={threads},tb-size=1024",
            # QEMU 7.2 mis-emulates cmpxchg16b, which 6.12 uses. MWAIT it takes
            # for HLT, but only where there is one CPU.
            "-cpu", "max,-cx16,-monitor", "-smp", str(options.smp),
            # The ELF file has a PVH entry: no unpacking inside the emulator.
            "-kernel", str(kernel / "vmlinux"),
            "-initrd", str(assets.image(options.kernel, "l1")),
            "-append", self._kernel_arguments(),
            "-chardev", f"socket,id=console,fd={console}",
            "-serial", "chardev:console",
            "-chardev", f"socket,id=agent,fd={agent}",
            "-device", "virtio-serial-pci,max_ports=2",
            "-device", "virtserialport,nr=1,chardev=agent,"
                       "name=org.quire.lab",
            "-chardev", f"socket,id=share,fd={share}",
            "-device", "vhost-user-fs-pci,chardev=share,tag=root,"
                       "queue-size=1024",
        ]
        command += self._memory()
        if options.disk:
            command += self._disk()
        return command

    def _kernel_arguments(self):
        def encode(text):
            return base64.b64encode(str(text).encode()).decode()

        modules = self._assets.modules(self._options.kernel)
        words = [KERNEL_ARGUMENTS, "lab.modules=" + encode(modules)]
        if self._options.out:
            words.append("lab.out=" + encode(self._options.out))
        line = " ".join(words)
        if len(line) > 2000:
            raise LabError("the paths of --out and of the cache are too long "
                           "for a kernel command line")
        return line

    def _memory(self):
        """Memory and CPUs, spread evenly over the nodes.

        vhost-user wants shared memory, and that comes with nodes.
        """
        options, arguments = self._options, ["-m", str(self._options.mem)]
        for node in range(options.numa):
            first, last = (options.mem * n // options.numa
                           for n in (node, node + 1))
            arguments += [
                "-object", f"memory-backend-memfd,id=node{node},share=on,"
                           f"size={last - first}M"]
            cpus = [c for c in range(options.smp)
                    if c * options.numa // options.smp == node]
            spread = f",cpus={cpus[0]}-{cpus[-1]}" if cpus else ""
            arguments += ["-numa",
                          f"node,nodeid={node},memdev=node{node}{spread}"]
        return arguments

    def _disk(self):
        """A scratch disk in a file that never has a name."""
        disk = tempfile.TemporaryFile(dir=self._assets.cache)
        os.truncate(disk.fileno(), self._options.disk << 20)
        self._inherited.append(disk)
        return ["-drive", "if=none,id=disk,format=raw,cache=unsafe,"
                          "discard=unmap,"
                          f"file=/proc/self/fd/{disk.fileno()}",
                "-device", "virtio-blk-pci,drive=disk"]

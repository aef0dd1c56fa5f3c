# SPDX-License-Identifier: Apache-2.0
"""Benchmarks in which two guests stay up and take turns.

Both guests boot once; then one works for a few seconds while the other
waits at its console.  So both sides see the same machine, minute by minute;
each turn gives one ratio, and the median of these is the result.

A guest waits for a line "WORKLOAD SECONDS NUMBER" on its console and answers
"bench: turn NUMBER figure VALUE.". With fio for the work:

    workloads = [Fio("randread", "--rw=randread --bs=4k", IOPS_READ)]
    script = fio_script(workloads, common_words="--filename=/dev/vda")
    figures = measure(sides, workloads, runs=7, seconds=3)
    rows, ratios = results_of(figures, sides, workloads)
"""

import contextlib
import dataclasses
import re
import statistics

import common

READY = b"bench: ready"
BOOT_SECONDS = 180
# Above a turn's own time: starting its program, slow in an emulated guest.
SLACK_SECONDS = 120

# Fields of fio's terse output, version 3.
KIB_READ, IOPS_READ, KIB_WRITE, IOPS_WRITE = 7, 8, 48, 49


@dataclasses.dataclass
class Workload:
    """Its name on the guest's console, and the unit of its figures."""

    name: str
    unit: str  # "iops" or "kib_s"


class Fio(Workload):
    """fio's words for it, and which field of its output counts."""

    def __init__(self, name, words, field):
        super().__init__(name, "iops" if field in (IOPS_READ, IOPS_WRITE)
                         else "kib_s")
        self.words, self.field = words, field


def fio_script(workloads, common_words, setup=""):
    """What the guest runs: a line "WORKLOAD SECONDS NUMBER" is one turn."""
    cases = "".join(
        f"    {w.name}) field={w.field}; words='{w.words}' ;;\n"
        for w in workloads)
    return f"""
{setup}
echo 'bench: ready'
while read workload seconds number; do
    case $workload in
{cases}    *) break ;;
    esac
    figure=$(fio --name=turn {common_words} --time_based \\
        --runtime=$seconds $words --output-format=terse \\
        --terse-version=3 | cut -d';' -f$field)
    echo "bench: turn $number figure $figure."
done
"""


class Turns:
    """The guests, and the numbers they have given."""

    def __init__(self, vms, workloads, seconds):
        self._vms = vms
        self._seconds = seconds
        self._number = 0
        self.figures = {(w.name, n): [] for w in workloads for n in vms}

    def take(self, workload, name, keep=True):
        vm = self._vms[name]
        self._number += 1
        vm.send(f"{workload.name} {self._seconds} {self._number}")
        mark = f"bench: turn {self._number} figure "
        pattern = re.compile(re.escape(mark.encode()) + rb"([0-9]*)\.\r?\n")
        vm.wait_for_pattern(pattern, self._seconds + SLACK_SECONDS)
        found = pattern.search(vm.console)[1]
        if not found or found == b"0":
            raise vm.failure(f"no result for {workload.name}")
        if keep:
            self.figures[workload.name, name].append(int(found))
        common.progress(f"{workload.name} {name}: {int(found)} "
                        f"{workload.unit}{'' if keep else ' (warm-up)'}")


def measure(sides, workloads, runs, seconds):
    """{(workload's name, side): [figure, ...]}; sides are argument lists."""
    vms = {}
    with contextlib.ExitStack() as stack:
        # One boots after the other: a boot is not what is compared.
        for name, argv in sides.items():
            vms[name] = stack.enter_context(common.Vm(argv, dialogue=True))
            vms[name].wait_for(READY, BOOT_SECONDS)
        turns = Turns(vms, workloads, seconds)
        for workload in workloads:
            for name in vms:
                turns.take(workload, name, keep=False)
            for name, _vm in common.alternate(vms, runs):
                turns.take(workload, name)
        for vm in vms.values():
            vm.send("end")
            vm.wait_exit(BOOT_SECONDS)
    return turns.figures


def results_of(figures, sides, workloads):
    """Rows, and one ratio for each workload."""
    rows, ratios = [], {}
    for w in workloads:
        for name in sides:
            took = common.summary(figures[w.name, name])
            rows.append({"workload": w.name, "vmm": name,
                         **{f"{key}_{w.unit}": value
                            for key, value in took.items()}})
        if len(sides) == 2:
            pairs = zip(figures[w.name, "quire"], figures[w.name, "qemu"])
            ratios[w.name] = round(
                statistics.median(q / p for q, p in pairs), 3)
    return rows, ratios


def print_table(rows, ratios):
    print(f"{'':12}{'':8}{'median':>9}{'min':>9}{'max':>9}")
    for row in rows:
        unit = next(key.removeprefix("median_") for key in row
                    if key.startswith("median_"))
        print(f"{row['workload']:12}{row['vmm']:8}"
              f"{row['median_' + unit]:9.0f}{row['min_' + unit]:9.0f}"
              f"{row['max_' + unit]:9.0f}   "
              f"{'IOPS' if unit == 'iops' else 'KiB/s'}")
    for workload, ratio in ratios.items():
        print(f"ratio {ratio:.2f} {workload} (above 1: quire is faster)")

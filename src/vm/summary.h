/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a finished VM did, for `quire run --summary`: times, memory, exits,
 * second-stage faults from KVM's own statistics, devices. Taken on the control
 * thread after the vCPUs stopped and before the machine is freed.
 */
#ifndef QUIRE_VM_SUMMARY_H
#define QUIRE_VM_SUMMARY_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

#include "base/compiler.h"
#include "vm/config.h"
#include "vm/machine.h"
#include "vm/memory_stats.h"

struct vm_summary_device {
	char id[64];
	char config_id[64]; /* "_disk0" */
	uint64_t requests, kicks, interrupts, errors;
	/* Of its own kind: "rx_bytes". */
	struct {
		const char *name;
		uint64_t value;
	} own[VIRTIO_MAX_COUNTERS];
	unsigned int num_own;
};

/* {"requests": N, ...}, its own ones among them. */
json_t *vm_summary_device_json(const struct vm_summary_device *device);

struct vm_summary {
	unsigned int boots; /* 1 + restarts; all else is of the last one */
	double build_s, run_s;
	bool has_init;
	double init_s; /* from the start of building to the guest's init */
	double populate_s;
	unsigned int num_cpus;
	uint64_t memory_bytes;
	uint64_t guest_resident_bytes; /* of guest RAM, in host pages */
	uint64_t guest_huge_bytes;     /* of that, in huge pages */
	uint64_t overhead_bytes;       /* resident memory beyond guest RAM */
	/* KVM's statistics; has_kvm_stats false: this kernel keeps none. */
	bool has_kvm_stats;
	uint64_t exits, second_stage_faults;
	uint64_t pages_4k, pages_2m, pages_1g;
	uint64_t exits_pio, exits_mmio, unclaimed;
	struct memory_stats memory;
	struct vm_summary_device devices[VM_MAX_DEVICES];
	unsigned int num_devices;
	struct machine_gone_devices gone; /* removed while it ran */
};

/* start_ns, built_ns: clock_now_ns() before building and before running. */
void vm_summary_take(struct vm_summary *summary, struct machine *machine,
		     uint64_t start_ns, uint64_t built_ns);

/*
 * Only what is counted: boots, exits, second-stage faults, devices. Cheap, for
 * those who ask all the time.
 */
void vm_summary_take_counters(struct vm_summary *summary,
			      struct machine *machine);

/* A page of text for people. */
void vm_summary_print(const struct vm_summary *summary, FILE *out);

/* Could vm_summary_write_json() write path? Leaves nothing behind. */
__must_check int vm_summary_check_path(const char *path, struct err *err);

/*
 * One JSON object with the same facts, in a file that appears whole (a
 * temporary name, then rename) or not at all.
 */
__must_check int vm_summary_write_json(const struct vm_summary *summary,
				       const char *path, struct err *err);

#endif

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Hot-plug of PCI slots, inside PCI0: a device object for each slot but the
 * bridge's, and the event's method. The registers are device/pci_hotplug.h's.
 *
 * There is no _STA: a guest then asks configuration space whether a slot has a
 * device, which is the only truth. No object needs the others, so a C macro
 * writes them (the C preprocessor runs before iasl).
 */
#define EACH_SLOT(x) \
	x (S01, 0x01) x (S02, 0x02) x (S03, 0x03) x (S04, 0x04) \
	x (S05, 0x05) x (S06, 0x06) x (S07, 0x07) x (S08, 0x08) \
	x (S09, 0x09) x (S0A, 0x0A) x (S0B, 0x0B) x (S0C, 0x0C) \
	x (S0D, 0x0D) x (S0E, 0x0E) x (S0F, 0x0F) x (S10, 0x10) \
	x (S11, 0x11) x (S12, 0x12) x (S13, 0x13) x (S14, 0x14) \
	x (S15, 0x15) x (S16, 0x16) x (S17, 0x17) x (S18, 0x18) \
	x (S19, 0x19) x (S1A, 0x1A) x (S1B, 0x1B) x (S1C, 0x1C) \
	x (S1D, 0x1D) x (S1E, 0x1E) x (S1F, 0x1F)

OperationRegion (HPRG, SystemIO, 0x0610, 0x0C)
Field (HPRG, DWordAcc, NoLock, WriteAsZeros)
{
	HPUP, 32,	/* came: write back to acknowledge */
	HPDN, 32,	/* shall go: write back to acknowledge */
	HPEJ, 32	/* is let go */
}

#define SLOT_DEVICE(name, number) \
	Device (name) { \
		Name (_ADR, number << 16) \
		Name (_SUN, number) \
		Method (_EJ0, 1, NotSerialized) { HPEJ = 1 << number } \
	}
EACH_SLOT (SLOT_DEVICE)

/* Acknowledge first: what happens meanwhile is an event of its own. */
#define SLOT_NOTIFY(name, number) \
	If (Local0 & (1 << number)) { Notify (name, 0x01) } \
	If (Local1 & (1 << number)) { Notify (name, 0x03) }
Method (HPNT, 0, Serialized)
{
	Local0 = HPUP
	HPUP = Local0
	Local1 = HPDN
	HPDN = Local1
	EACH_SLOT (SLOT_NOTIFY)
}

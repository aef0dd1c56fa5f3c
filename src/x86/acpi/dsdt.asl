/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a guest cannot find out by probing: the PCI host bridge with its
 * windows and the hot-plug of its slots, the serial port, the clock, the VM
 * generation id, the panic port, and how to switch off.
 *
 * This table is the same for every VM. What differs is read at run time from
 * the machine-info block, which acpi.c writes (struct acpi_machine_info there
 * has the same fields in the same order). The numbers below that repeat
 * x86/layout.h are held to it by static assertions in acpi.c.
 */
DefinitionBlock ("dsdt.aml", "DSDT", 2, "QUIRE ", "QUIREVM ", 0x00000001)
{
	/* Sleep type 5 to PM1a_CNT is "soft off"; the others do not exist. */
	Name (\_S5, Package () { 0x05, 0x05, Zero, Zero })

	OperationRegion (MINF, SystemMemory, 0x000E0040, 0x20)
	Field (MINF, AnyAcc, NoLock, Preserve)
	{
		P32S, 32,	/* PCI window below 4 GiB: first address */
		P32L, 32,	/* and length */
		ECMS, 32,	/* ECAM: first address */
		ECML, 32,	/* and length */
		P64S, 64,	/* PCI window above 4 GiB: first address */
		P64L, 64	/* and length; 0: there is none */
	}

	Scope (\_SB)
	{
		Device (PCI0)
		{
			Name (_HID, EisaId ("PNP0A08"))
			Name (_CID, EisaId ("PNP0A03"))
			Name (_UID, Zero)
			Name (_SEG, Zero)
			Name (_BBN, Zero)

			Name (CRSL, ResourceTemplate ()
			{
				WordBusNumber (ResourceProducer, MinFixed,
					MaxFixed, PosDecode,
					0x0000, 0x0000, 0x0000, 0x0000, 0x0001,
					, , BUSN)
				IO (Decode16, 0x0CF8, 0x0CF8, 0x01, 0x08)
				WordIO (ResourceProducer, MinFixed, MaxFixed,
					PosDecode, EntireRange,
					0x0000, 0x0000, 0x0CF7, 0x0000, 0x0CF8)
				WordIO (ResourceProducer, MinFixed, MaxFixed,
					PosDecode, EntireRange,
					0x0000, 0x0D00, 0xFFFF, 0x0000, 0xF300)
				DWordMemory (ResourceProducer, PosDecode,
					MinFixed, MaxFixed, NonCacheable,
					ReadWrite, 0x00000000,
					0xC0000000, 0xDFFFFFFF,
					0x00000000, 0x20000000, , , W32)
			})

			Name (CRSH, ResourceTemplate ()
			{
				QWordMemory (ResourceProducer, PosDecode,
					MinFixed, MaxFixed, Cacheable,
					ReadWrite, 0x0000000000000000,
					0x0000001000000000, 0x0000001FFFFFFFFF,
					0x0000000000000000, 0x0000001000000000,
					, , W64)
			})

			Method (_CRS, 0, Serialized)
			{
				CreateWordField (CRSL, ^BUSN._MAX, MAXB)
				CreateWordField (CRSL, ^BUSN._LEN, LENB)
				CreateDWordField (CRSL, ^W32._MIN, MIN3)
				CreateDWordField (CRSL, ^W32._MAX, MAX3)
				CreateDWordField (CRSL, ^W32._LEN, LEN3)
				CreateQWordField (CRSH, ^W64._MIN, MIN6)
				CreateQWordField (CRSH, ^W64._MAX, MAX6)
				CreateQWordField (CRSH, ^W64._LEN, LEN6)

				LENB = ECML >> 20	/* 1 MiB for each bus */
				MAXB = LENB - 1
				MIN3 = P32S
				LEN3 = P32L
				MAX3 = P32S + P32L - 1
				If (P64L == Zero)
				{
					Return (CRSL)
				}
				MIN6 = P64S
				LEN6 = P64L
				MAX6 = P64S + P64L - 1
				Return (ConcatenateResTemplate (CRSL, CRSH))
			}

			/*
			 * Control of native PCI Express features: the guest
			 * may have all but SHPC hot-plug, as nothing here
			 * competes for them.
			 */
			Method (_OSC, 4, Serialized)
			{
				CreateDWordField (Arg3, Zero, CDW1)
				If (Arg0 != ToUUID ("33db4d5b-1ff7-401c-9657-7441c03dd766"))
				{
					CDW1 |= 0x04	/* unknown UUID */
					Return (Arg3)
				}
				CreateDWordField (Arg3, 0x08, CDW3)
				If (Arg1 != One)
				{
					CDW1 |= 0x08	/* unknown revision */
				}
				Local0 = CDW3 & 0x1D
				If (Local0 != CDW3)
				{
					CDW1 |= 0x10	/* not all granted */
				}
				CDW3 = Local0
				Return (Arg3)
			}

#include "pci_slots.asl"
		}

		/* Motherboard resources: keeps drivers off ECAM, PM, hot-plug. */
		Device (MRES)
		{
			Name (_HID, EisaId ("PNP0C02"))
			Name (_UID, Zero)
			Name (CRSM, ResourceTemplate ()
			{
				Memory32Fixed (ReadWrite,
					0xE0000000, 0x00100000, ECAM)
				IO (Decode16, 0x0600, 0x0600, 0x01, 0x1C)
			})
			Method (_CRS, 0, Serialized)
			{
				CreateDWordField (CRSM, ^ECAM._BAS, BASE)
				CreateDWordField (CRSM, ^ECAM._LEN, SIZE)

				BASE = ECMS
				SIZE = ECML
				Return (CRSM)
			}
		}

		Device (COM1)
		{
			Name (_HID, EisaId ("PNP0501"))
			Name (_UID, One)
			Name (_CRS, ResourceTemplate ()
			{
				IO (Decode16, 0x03F8, 0x03F8, 0x01, 0x08)
				IRQNoFlags () { 4 }
			})
		}

		Device (RTC0)
		{
			Name (_HID, EisaId ("PNP0B00"))
			Name (_CRS, ResourceTemplate ()
			{
				IO (Decode16, 0x0070, 0x0070, 0x01, 0x02)
				IRQNoFlags () { 8 }
			})
		}

		/* The VM generation id; the names are those that drivers know. */
		Device (VGEN)
		{
			Name (_HID, "QUIR0001")
			Name (_CID, Package () { "VMGENCTR", "VM_Gen_Counter" })
			Name (_DDN, "VM_Gen_Counter")
			Name (ADDR, Package () { 0x000FF000, Zero })
		}

		/* The panic port, by the id that QEMU gave it. */
		Device (PEVT)
		{
			Name (_HID, "QEMU0001")
			Name (_CRS, ResourceTemplate ()
			{
				IO (Decode16, 0x0505, 0x0505, 0x01, 0x01)
			})
		}
	}

	/* General-purpose events, by the numbers in x86/layout.h. */
	Scope (\_GPE)
	{
		Method (_L01, 0, NotSerialized)
		{
			\_SB.PCI0.HPNT ()
		}

		Method (_E02, 0, NotSerialized)
		{
			Notify (\_SB.VGEN, 0x80)
		}
	}
}

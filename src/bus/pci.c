/* SPDX-License-Identifier: Apache-2.0 */
#include "bus/pci.h"

#include <linux/pci_regs.h>
#include <string.h>

#include "base/arith.h"

void pci_dev_init(struct pci_dev *dev, const char *name,
		  const struct pci_id *id)
{
	uint8_t *c = dev->config;

	memset(dev, 0, sizeof(*dev));
	dev->name = name;
	le16_store(c + PCI_VENDOR_ID, id->vendor);
	le16_store(c + PCI_DEVICE_ID, id->device);
	c[PCI_REVISION_ID] = id->revision;
	c[PCI_CLASS_PROG] = (uint8_t)id->class_code;
	le16_store(c + PCI_CLASS_DEVICE, (uint16_t)(id->class_code >> 8));
	c[PCI_HEADER_TYPE] = PCI_HEADER_TYPE_NORMAL;
	le16_store(c + PCI_SUBSYSTEM_VENDOR_ID, id->subsystem_vendor);
	le16_store(c + PCI_SUBSYSTEM_ID, id->subsystem);

	/*
	 * Port decoding stays hard-wired to 0: there are no I/O BARs. The
	 * interrupt line is a scratch byte for firmware and system software.
	 */
	le16_store(dev->wmask + PCI_COMMAND,
		   PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER |
			   PCI_COMMAND_PARITY | PCI_COMMAND_SERR |
			   PCI_COMMAND_INTX_DISABLE);
	le16_store(dev->w1cmask + PCI_STATUS,
		   PCI_STATUS_PARITY | PCI_STATUS_SIG_TARGET_ABORT |
			   PCI_STATUS_REC_TARGET_ABORT |
			   PCI_STATUS_REC_MASTER_ABORT |
			   PCI_STATUS_SIG_SYSTEM_ERROR |
			   PCI_STATUS_DETECTED_PARITY);
	dev->wmask[PCI_CACHE_LINE_SIZE] = 0xff;
	dev->wmask[PCI_INTERRUPT_LINE] = 0xff;
	dev->next_cap = PCI_STD_HEADER_SIZEOF;
}

void pci_dev_add_bar(struct pci_dev *dev, unsigned int bar, uint64_t size,
		     bool is_64bit, bool prefetchable,
		     const struct iobus_ops *ops, void *ops_dev)
{
	uint8_t reg = (uint8_t)(PCI_BASE_ADDRESS_0 + 4 * bar);
	uint64_t mask = ~(size - 1) & ~(uint64_t)0xf;
	uint32_t flags = 0;

	BUG_ON(bar + is_64bit >= PCI_NUM_BARS);
	BUG_ON(!is_pow2(size) || size < 16);
	BUG_ON(!is_64bit && size > 2 * GIB);
	BUG_ON(dev->bars[bar].size || le32_load(dev->wmask + reg));
	BUG_ON(is_64bit && dev->bars[bar + 1].size);

	dev->bars[bar] = (struct pci_bar){
		.size = size,
		.is_64bit = is_64bit,
		.prefetchable = prefetchable,
		.ops = ops,
		.dev = ops_dev,
	};
	if (is_64bit)
		flags |= PCI_BASE_ADDRESS_MEM_TYPE_64;
	if (prefetchable)
		flags |= PCI_BASE_ADDRESS_MEM_PREFETCH;
	le32_store(dev->config + reg, flags);
	/* Bits below the size read as zero, which is how a guest sizes a BAR.
	 */
	le32_store(dev->wmask + reg, (uint32_t)mask);
	if (is_64bit)
		le32_store(dev->wmask + reg + 4, (uint32_t)(mask >> 32));
}

uint8_t pci_dev_add_cap(struct pci_dev *dev, uint8_t id, const void *data,
			uint8_t len)
{
	uint8_t at = dev->next_cap;

	BUG_ON(len < 2 || !range_ok(at, len, PCI_CONFIG_BYTES));
	dev->config[at + PCI_CAP_LIST_ID] = id;
	dev->config[at + PCI_CAP_LIST_NEXT] = 0;
	memcpy(dev->config + at + 2, data, len - 2u);
	if (dev->last_cap)
		dev->config[dev->last_cap + PCI_CAP_LIST_NEXT] = at;
	else
		dev->config[PCI_CAPABILITY_LIST] = at;
	dev->config[PCI_STATUS] |= PCI_STATUS_CAP_LIST;
	dev->last_cap = at;
	/* Capabilities are aligned to 4; a full space wraps to an odd "full".
	 */
	dev->next_cap = (uint8_t)MIN(align_up(at + len, 4), 0xffull);
	return at;
}

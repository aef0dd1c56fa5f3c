/* SPDX-License-Identifier: Apache-2.0 */
#include "kvm/irq_state.h"

#include <errno.h>
#include <string.h>

#include "base/arith.h"

/* KVM's struct, of which the reserved and derived parts are left out. */
struct pic_state {
	uint8_t last_irr, irr, imr, isr;
	uint8_t priority_add, irq_base;
	uint8_t read_reg_select, poll, special_mask, init_state, auto_eoi;
	uint8_t rotate_on_auto_eoi, special_fully_nested, init4;
	uint8_t elcr, elcr_mask;
};

#define PIC(member, ...) STATE_FIELD_UINT(struct pic_state, member, __VA_ARGS__)

static const struct state_field pic_fields[] = {
	PIC(last_irr, 1),
	PIC(irr, 2),
	PIC(imr, 3),
	PIC(isr, 4),
	PIC(priority_add, 5, .max = 7),
	PIC(irq_base, 6),
	PIC(read_reg_select, 7, .max = 1),
	PIC(poll, 8, .max = 4),
	PIC(special_mask, 9, .max = 1),
	PIC(init_state, 10, .max = 3),
	PIC(auto_eoi, 11, .max = 2),
	PIC(rotate_on_auto_eoi, 12, .max = 1),
	PIC(special_fully_nested, 13, .max = 1),
	PIC(init4, 14, .max = 1),
	PIC(elcr, 15),
	PIC(elcr_mask, 16),
};

static const struct state_table pic_table = {
	.section = "pic",
	.version = 1,
	.object_bytes = sizeof(struct pic_state),
	.fields = pic_fields,
	.num_fields = ARRAY_SIZE(pic_fields),
};

static int save_pic(const struct kvm_vm *vm, uint32_t chip,
		    const char *instance, struct state_writer *w,
		    struct err *err)
{
	struct kvm_irqchip c = { .chip_id = chip };
	const struct kvm_pic_state *k = &c.chip.pic;
	struct pic_state s;
	int r = kvm_ioctl(vm->fd, KVM_GET_IRQCHIP, &c);

	if (r < 0)
		return err_errno(err, -r, "KVM_GET_IRQCHIP %u", chip);
	s = (struct pic_state){
		.last_irr = k->last_irr,
		.irr = k->irr,
		.imr = k->imr,
		.isr = k->isr,
		.priority_add = k->priority_add,
		.irq_base = k->irq_base,
		.read_reg_select = k->read_reg_select,
		.poll = k->poll,
		.special_mask = k->special_mask,
		.init_state = k->init_state,
		.auto_eoi = k->auto_eoi,
		.rotate_on_auto_eoi = k->rotate_on_auto_eoi,
		.special_fully_nested = k->special_fully_nested_mode,
		.init4 = k->init4,
		.elcr = k->elcr,
		.elcr_mask = k->elcr_mask,
	};
	state_save(w, &pic_table, instance, &s);
	return 0;
}

static int load_pic(const struct kvm_vm *vm, uint32_t chip,
		    const char *instance, struct state_reader *r,
		    struct err *err)
{
	struct kvm_irqchip c = { .chip_id = chip };
	struct kvm_pic_state *k = &c.chip.pic;
	struct pic_state s = { 0 };
	int ret = state_load(r, &pic_table, instance, &s, err);

	if (ret)
		return ret;
	*k = (struct kvm_pic_state){
		.last_irr = s.last_irr,
		.irr = s.irr,
		.imr = s.imr,
		.isr = s.isr,
		.priority_add = s.priority_add,
		.irq_base = s.irq_base,
		.read_reg_select = s.read_reg_select,
		.poll = s.poll,
		.special_mask = s.special_mask,
		.init_state = s.init_state,
		.auto_eoi = s.auto_eoi,
		.rotate_on_auto_eoi = s.rotate_on_auto_eoi,
		.special_fully_nested_mode = s.special_fully_nested,
		.init4 = s.init4,
		.elcr = s.elcr,
		.elcr_mask = s.elcr_mask,
	};
	ret = kvm_ioctl(vm->fd, KVM_SET_IRQCHIP, &c);
	return ret < 0 ? err_errno(err, -ret, "KVM_SET_IRQCHIP %u", chip) : 0;
}

/* ---- IOAPIC ---- */

struct ioapic_state {
	uint64_t base_address;
	uint32_t ioregsel, id, irr;
	uint64_t redirtbl[KVM_IOAPIC_NUM_PINS];
};

#define IOAPIC(kind, member, ...) \
	STATE_FIELD_##kind(struct ioapic_state, member, __VA_ARGS__)

static const struct state_field ioapic_fields[] = {
	IOAPIC(UINT, base_address, 1),
	IOAPIC(UINT, ioregsel, 2, .max = 0xff),
	IOAPIC(UINT, id, 3, .max = 0xff),
	IOAPIC(UINT, irr, 4, .max = (1u << KVM_IOAPIC_NUM_PINS) - 1),
	IOAPIC(UINTS, redirtbl, 5),
};

/* KVM moves its IOAPIC to where it is told: over RAM, if need be. */
static int ioapic_check(const struct state_check *c, const void *loaded,
			const void *live)
{
	const struct ioapic_state *s = loaded, *now = live;

	if (s->base_address != now->base_address)
		return state_refuse(c, "base_address", "%#llx, here %#llx",
				    (unsigned long long)s->base_address,
				    (unsigned long long)now->base_address);
	return 0;
}

static const struct state_table ioapic_table = {
	.section = "ioapic-kvm",
	.version = 1,
	.object_bytes = sizeof(struct ioapic_state),
	.fields = ioapic_fields,
	.num_fields = ARRAY_SIZE(ioapic_fields),
	.check = ioapic_check,
};

static int get_ioapic(const struct kvm_vm *vm, struct ioapic_state *s,
		      struct err *err)
{
	struct kvm_irqchip c = { .chip_id = KVM_IRQCHIP_IOAPIC };
	const struct kvm_ioapic_state *k = &c.chip.ioapic;
	int r = kvm_ioctl(vm->fd, KVM_GET_IRQCHIP, &c);

	if (r < 0)
		return err_errno(err, -r, "KVM_GET_IRQCHIP of the IOAPIC");
	*s = (struct ioapic_state){
		.base_address = k->base_address,
		.ioregsel = k->ioregsel,
		.id = k->id,
		.irr = k->irr,
	};
	for (unsigned int i = 0; i < KVM_IOAPIC_NUM_PINS; i++)
		s->redirtbl[i] = k->redirtbl[i].bits;
	return 0;
}

static int save_ioapic(const struct kvm_vm *vm, struct state_writer *w,
		       struct err *err)
{
	struct ioapic_state s;
	int r = get_ioapic(vm, &s, err);

	if (!r)
		state_save(w, &ioapic_table, NULL, &s);
	return r;
}

static int load_ioapic(const struct kvm_vm *vm, struct state_reader *r,
		       struct err *err)
{
	struct kvm_irqchip c = { .chip_id = KVM_IRQCHIP_IOAPIC };
	struct kvm_ioapic_state *k = &c.chip.ioapic;
	struct ioapic_state s;
	int ret = get_ioapic(vm, &s, err);

	if (!ret)
		ret = state_load(r, &ioapic_table, NULL, &s, err);
	if (ret)
		return ret;
	k->base_address = s.base_address;
	k->ioregsel = s.ioregsel;
	k->id = s.id;
	k->irr = s.irr;
	for (unsigned int i = 0; i < KVM_IOAPIC_NUM_PINS; i++)
		k->redirtbl[i].bits = s.redirtbl[i];
	ret = kvm_ioctl(vm->fd, KVM_SET_IRQCHIP, &c);
	return ret < 0 ? err_errno(err, -ret, "KVM_SET_IRQCHIP of the IOAPIC")
		       : 0;
}

/* ---- PIT ---- */

#define PIT_CHANNELS 3

struct pit_state {
	uint32_t count[PIT_CHANNELS];
	uint16_t latched_count[PIT_CHANNELS];
	uint8_t count_latched[PIT_CHANNELS], status_latched[PIT_CHANNELS];
	uint8_t status[PIT_CHANNELS];
	uint8_t read_state[PIT_CHANNELS], write_state[PIT_CHANNELS];
	uint8_t write_latch[PIT_CHANNELS];
	uint8_t rw_mode[PIT_CHANNELS], mode[PIT_CHANNELS], bcd[PIT_CHANNELS];
	uint8_t gate[PIT_CHANNELS];
	uint32_t flags;
};

#define PIT(kind, member, ...) \
	STATE_FIELD_##kind(struct pit_state, member, __VA_ARGS__)

/*
 * When the count was loaded is the host's time, and KVM does not take it back:
 * a period begins with loading.
 */
static const struct state_field pit_fields[] = {
	PIT(UINTS, count, 1, .max = 65536),
	PIT(UINTS, latched_count, 2),
	PIT(UINTS, count_latched, 3, .max = 4),
	PIT(UINTS, status_latched, 4, .max = 1),
	PIT(UINTS, status, 5),
	PIT(UINTS, read_state, 6, .max = 4),
	PIT(UINTS, write_state, 7, .max = 4),
	PIT(UINTS, write_latch, 8),
	PIT(UINTS, rw_mode, 9, .max = 3),
	PIT(UINTS, mode, 10), /* 0xff after reset */
	PIT(UINTS, bcd, 11, .max = 1),
	PIT(UINTS, gate, 12, .max = 1),
	PIT(UINT, flags, 13,
	    .max = KVM_PIT_FLAGS_HPET_LEGACY | KVM_PIT_FLAGS_SPEAKER_DATA_ON),
};

static const struct state_table pit_table = {
	.section = "pit",
	.version = 1,
	.object_bytes = sizeof(struct pit_state),
	.fields = pit_fields,
	.num_fields = ARRAY_SIZE(pit_fields),
};

static int save_pit(const struct kvm_vm *vm, struct state_writer *w,
		    struct err *err)
{
	struct kvm_pit_state2 pit = { .flags = 0 };
	struct pit_state s = { .flags = 0 };
	int r = kvm_ioctl(vm->fd, KVM_GET_PIT2, &pit);

	if (r < 0)
		return err_errno(err, -r, "KVM_GET_PIT2");
	for (unsigned int i = 0; i < PIT_CHANNELS; i++) {
		const struct kvm_pit_channel_state *c = &pit.channels[i];

		s.count[i] = c->count;
		s.latched_count[i] = c->latched_count;
		s.count_latched[i] = c->count_latched;
		s.status_latched[i] = c->status_latched;
		s.status[i] = c->status;
		s.read_state[i] = c->read_state;
		s.write_state[i] = c->write_state;
		s.write_latch[i] = c->write_latch;
		s.rw_mode[i] = c->rw_mode;
		s.mode[i] = c->mode;
		s.bcd[i] = c->bcd;
		s.gate[i] = c->gate;
	}
	s.flags = pit.flags;
	state_save(w, &pit_table, NULL, &s);
	return 0;
}

static int load_pit(const struct kvm_vm *vm, struct state_reader *r,
		    struct err *err)
{
	struct kvm_pit_state2 pit = { .flags = 0 };
	struct pit_state s = { .flags = 0 };
	int ret = state_load(r, &pit_table, NULL, &s, err);

	if (ret)
		return ret;
	for (unsigned int i = 0; i < PIT_CHANNELS; i++)
		pit.channels[i] = (struct kvm_pit_channel_state){
			.count = s.count[i],
			.latched_count = s.latched_count[i],
			.count_latched = s.count_latched[i],
			.status_latched = s.status_latched[i],
			.status = s.status[i],
			.read_state = s.read_state[i],
			.write_state = s.write_state[i],
			.write_latch = s.write_latch[i],
			.rw_mode = s.rw_mode[i],
			.mode = s.mode[i],
			.bcd = s.bcd[i],
			.gate = s.gate[i],
		};
	pit.flags = s.flags;
	ret = kvm_ioctl(vm->fd, KVM_SET_PIT2, &pit);
	return ret < 0 ? err_errno(err, -ret, "KVM_SET_PIT2") : 0;
}

int irq_state_save(const struct kvm_vm *vm, struct state_writer *w,
		   struct err *err)
{
	int r = save_pic(vm, KVM_IRQCHIP_PIC_MASTER, "0", w, err);

	if (!r)
		r = save_pic(vm, KVM_IRQCHIP_PIC_SLAVE, "1", w, err);
	if (!r)
		r = save_ioapic(vm, w, err);
	return r ? r : save_pit(vm, w, err);
}

int irq_state_load(const struct kvm_vm *vm, struct state_reader *r,
		   struct err *err)
{
	int ret = load_pic(vm, KVM_IRQCHIP_PIC_MASTER, "0", r, err);

	if (!ret)
		ret = load_pic(vm, KVM_IRQCHIP_PIC_SLAVE, "1", r, err);
	if (!ret)
		ret = load_ioapic(vm, r, err);
	return ret ? ret : load_pit(vm, r, err);
}

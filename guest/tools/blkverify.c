/* SPDX-License-Identifier: Apache-2.0 */
/*
 * blkverify: is a disk byte-correct, and did it keep what it said was safe?
 *
 * A run makes N operations on a region of a file or block device: writes of
 * 1 to 16 blocks of 4 KiB, discards and zeroing.  After every K operations it
 * calls fdatasync and prints "flushed SEQ": from then on operation SEQ and all
 * before it must survive anything.  Operations follow from the seed and their
 * number alone, so a verifier with the same options knows what each block must
 * hold after a crash, on the host or after a restart, from the last flushed
 * line it has seen.
 *
 * A block written by operation S holds, in host order:
 *
 *    0  u64  magic            24  u64  S
 *    8  u64  seed             32  u32  CRC-32C of the block, this field 0
 *   16  u64  block number     36  u32  0
 *   40  pseudo-random words of (seed, block, S)
 *
 * With F the last flushed operation, a block may hold
 *   - what the last operation up to F that touched it left there;
 *   - what any operation after F that touches it leaves (it may or may not
 *     have reached the disk);
 *   - after a discard: zeroes, or what was there before, as a disk is free to
 *     do either; after zeroing and where nothing was ever written: zeroes.
 * Everything else is corruption: a wrong byte, a block in the wrong place, and
 * an old block where a flushed one belongs.
 *
 * Two operations between two flushes never touch the same block (the later one
 * is dropped): a page cache may write a page out while it is being changed, so
 * a mixture of two unflushed versions would be nobody's fault.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tools.h"

#define BLOCK_BYTES 4096u
#define RUN_MAX	    16u /* blocks of one operation */
#define READ_BLOCKS 256u
#define BLOCKS_MAX  (1ull << 28) /* 1 TiB; 16 bytes of memory each */
#define OPS_MAX	    100000000ull
#define REPORTS_MAX 10u
#define MAGIC	    0x7665726966793031ull

enum op_kind { OP_NONE, OP_WRITE, OP_DISCARD, OP_ZERO };

struct op {
	enum op_kind kind;
	uint64_t block;
	uint32_t count;
};

struct block_head {
	uint64_t magic;
	uint64_t seed;
	uint64_t block;
	uint64_t sequence;
	uint32_t crc;
	uint32_t zero;
};

struct job {
	const char *path;
	const char *name; /* NULL or printed in "flushed" lines */
	uint64_t seed, mib, offset_mib, ops, sync_every, discard, zeroed;
	uint64_t blocks;
	bool buffered;
	int fd;
	bool is_device;
	/* The schedule's memory: the last flush interval that used a block. */
	uint32_t *interval;
	unsigned char *buffer;
	uint32_t crc_table[256];
};

/* What a verifier knows of one block; operations are numbered from 1. */
struct expected {
	uint32_t last;	     /* last operation up to F that touched it */
	uint32_t last_write; /* last write up to F */
	bool last_discard;   /* "last" is a discard */
	bool zero_later;     /* an operation after F may have made it zero */
};

static uint64_t mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ull;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
	return x ^ (x >> 31);
}

static void crc_init(struct job *job)
{
	uint32_t i, bit, crc;

	for (i = 0; i < 256; i++) {
		crc = i;
		for (bit = 0; bit < 8; bit++)
			crc = crc & 1 ? crc >> 1 ^ 0x82f63b78u : crc >> 1;
		job->crc_table[i] = crc;
	}
}

static uint32_t block_crc(const struct job *job, const unsigned char *block)
{
	uint32_t crc = ~0u;
	size_t i;

	for (i = 0; i < BLOCK_BYTES; i++) {
		size_t field = i - offsetof(struct block_head, crc);
		unsigned char byte = field < 4 ? 0 : block[i];

		crc = crc >> 8 ^ job->crc_table[(crc ^ byte) & 0xff];
	}
	return ~crc;
}

static void block_fill(const struct job *job, unsigned char *at, uint64_t block,
		       uint64_t sequence)
{
	struct block_head head = {
		.magic = MAGIC,
		.seed = job->seed,
		.block = block,
		.sequence = sequence,
	};
	uint64_t word = mix(job->seed ^ mix(block ^ mix(sequence)));
	size_t i;

	memcpy(at, &head, sizeof(head));
	for (i = sizeof(head); i < BLOCK_BYTES; i += sizeof(word)) {
		word = mix(word);
		memcpy(at + i, &word, sizeof(word));
	}
	head.crc = block_crc(job, at);
	memcpy(at, &head, sizeof(head));
}

/* Operation number "sequence", were it alone: a pure function of the seed. */
static struct op op_choose(const struct job *job, uint64_t sequence)
{
	uint64_t a = mix(job->seed + mix(sequence));
	uint64_t b = mix(a), c = mix(b);
	struct op op = { .kind = OP_WRITE, .block = a % job->blocks };
	uint64_t percent = c % 100;

	op.count = 1 + (uint32_t)(b % RUN_MAX);
	if (op.count > job->blocks - op.block)
		op.count = (uint32_t)(job->blocks - op.block);
	if (percent < job->discard)
		op.kind = OP_DISCARD;
	else if (percent < job->discard + job->zeroed)
		op.kind = OP_ZERO;
	return op;
}

/*
 * The next operation of the schedule; OP_NONE where it would touch a block a
 * second time between two flushes.  To be called for 1, 2, 3...
 */
static struct op op_next(struct job *job, uint64_t sequence)
{
	struct op op = op_choose(job, sequence);
	uint32_t now = (uint32_t)((sequence - 1) / job->sync_every) + 1;
	uint32_t i;

	for (i = 0; i < op.count; i++)
		if (job->interval[op.block + i] == now)
			op.kind = OP_NONE;
	for (i = 0; op.kind != OP_NONE && i < op.count; i++)
		job->interval[op.block + i] = now;
	return op;
}

static int op_write(struct job *job, const struct op *op, uint64_t sequence,
		    off_t at)
{
	size_t length = (size_t)op->count * BLOCK_BYTES, done = 0;
	uint32_t i;

	for (i = 0; i < op->count; i++)
		block_fill(job, job->buffer + (size_t)i * BLOCK_BYTES,
			   op->block + i, sequence);
	while (done < length) {
		ssize_t n = pwrite(job->fd, job->buffer + done, length - done,
				   at + (off_t)done);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return n ? -errno : -EIO;
		done += (size_t)n;
	}
	return 0;
}

/* Discard and zeroing, as a file system or a block device offers them. */
static int op_clear(struct job *job, const struct op *op, off_t at)
{
	off_t length = (off_t)op->count * BLOCK_BYTES;
	uint64_t range[2] = { (uint64_t)at, (uint64_t)length };
	int rc;

	if (job->is_device)
		rc = ioctl(job->fd,
			   op->kind == OP_ZERO ? BLKZEROOUT : BLKDISCARD,
			   range);
	else
		rc = fallocate(job->fd,
			       FALLOC_FL_KEEP_SIZE |
				       (op->kind == OP_ZERO
						? FALLOC_FL_ZERO_RANGE
						: FALLOC_FL_PUNCH_HOLE),
			       at, length);
	return rc ? -errno : 0;
}

static int op_do(struct job *job, const struct op *op, uint64_t sequence)
{
	off_t at = (off_t)(job->offset_mib << 20) +
		   (off_t)(op->block * BLOCK_BYTES);
	int rc = 0;

	if (op->kind == OP_WRITE)
		rc = op_write(job, op, sequence, at);
	else if (op->kind != OP_NONE)
		rc = op_clear(job, op, at);
	if (rc)
		fprintf(stderr, "blkverify: %s: operation %llu (%s): %s\n",
			job->path, (unsigned long long)sequence,
			op->kind == OP_WRITE	 ? "write"
			: op->kind == OP_DISCARD ? "discard"
						 : "zero",
			strerror(-rc));
	return rc;
}

static int job_flush(struct job *job, uint64_t sequence)
{
	if (fdatasync(job->fd)) {
		fprintf(stderr, "blkverify: %s: fdatasync: %s\n", job->path,
			strerror(errno));
		return -EIO;
	}
	printf("flushed %s%s%llu\n", job->name ? job->name : "",
	       job->name ? " " : "", (unsigned long long)sequence);
	fflush(stdout);
	return 0;
}

static int job_run(struct job *job)
{
	uint64_t sequence;

	for (sequence = 1; sequence <= job->ops; sequence++) {
		struct op op = op_next(job, sequence);

		if (op_do(job, &op, sequence))
			return 1;
		if ((sequence % job->sync_every == 0 || sequence == job->ops) &&
		    job_flush(job, sequence))
			return 1;
	}
	return 0;
}

static struct expected *expected_make(struct job *job, uint64_t flushed)
{
	struct expected *all = calloc(job->blocks, sizeof(*all));
	uint64_t sequence;
	uint32_t i;

	memset(job->interval, 0, job->blocks * sizeof(*job->interval));
	for (sequence = 1; all && sequence <= job->ops; sequence++) {
		struct op op = op_next(job, sequence);

		for (i = 0; op.kind != OP_NONE && i < op.count; i++) {
			struct expected *one = &all[op.block + i];

			if (sequence > flushed) {
				one->zero_later |= op.kind != OP_WRITE;
				continue;
			}
			one->last = (uint32_t)sequence;
			one->last_discard = op.kind == OP_DISCARD;
			if (op.kind == OP_WRITE)
				one->last_write = (uint32_t)sequence;
		}
	}
	return all;
}

static bool is_zero(const unsigned char *at)
{
	return !at[0] && !memcmp(at, at + 1, BLOCK_BYTES - 1);
}

/* Why a block is wrong, or NULL. */
static const char *block_judge(const struct job *job,
			       const struct expected *one,
			       const unsigned char *at, uint64_t block,
			       uint64_t flushed)
{
	struct block_head head;
	struct op op;

	if (is_zero(at)) {
		if (!one->last || one->last != one->last_write ||
		    one->zero_later)
			return NULL;
		return "zeroes where a flushed write belongs";
	}
	memcpy(&head, at, sizeof(head));
	if (head.magic != MAGIC)
		return "not a block of ours";
	if (head.crc != block_crc(job, at))
		return "wrong checksum";
	if (head.seed != job->seed)
		return "a block of another run";
	if (head.block != block)
		return "a block of another place";
	if (!head.sequence || head.sequence > job->ops)
		return "a sequence number never used";
	op = op_choose(job, head.sequence);
	if (op.kind != OP_WRITE || block < op.block ||
	    block >= op.block + op.count)
		return "a sequence number that never touched this block";
	if (head.sequence > flushed)
		return NULL;
	if (head.sequence == one->last_write &&
	    (one->last == one->last_write || one->last_discard))
		return NULL;
	return "older than what was flushed";
}

static void report(const struct job *job, const struct expected *one,
		   const unsigned char *at, uint64_t block, const char *why)
{
	struct block_head head;

	memcpy(&head, at, sizeof(head));
	printf("mismatch: %s block %llu: %s (found magic %llx block %llu "
	       "sequence %llu; flushed there: %u)\n",
	       job->path, (unsigned long long)block, why,
	       (unsigned long long)head.magic, (unsigned long long)head.block,
	       (unsigned long long)head.sequence, one->last);
}

static int read_whole(const struct job *job, uint64_t block, size_t length)
{
	size_t done = 0;

	while (done < length) {
		ssize_t n = pread(job->fd, job->buffer + done, length - done,
				  (off_t)(job->offset_mib << 20) +
					  (off_t)(block * BLOCK_BYTES + done));

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0) {
			fprintf(stderr, "blkverify: %s: block %llu: %s\n",
				job->path, (unsigned long long)block,
				n ? strerror(errno) : "end of file");
			return -EIO;
		}
		done += (size_t)n;
	}
	return 0;
}

static int job_verify(struct job *job, uint64_t flushed)
{
	struct expected *all = expected_make(job, flushed);
	uint64_t block, bad = 0, newer = 0;
	uint32_t i, n;

	if (!all) {
		fputs("blkverify: no memory\n", stderr);
		return 1;
	}
	for (block = 0; block < job->blocks; block += n) {
		n = job->blocks - block < READ_BLOCKS
			    ? (uint32_t)(job->blocks - block)
			    : READ_BLOCKS;
		if (read_whole(job, block, (size_t)n * BLOCK_BYTES)) {
			free(all);
			return 1;
		}
		for (i = 0; i < n; i++) {
			unsigned char *at = job->buffer +
					    (size_t)i * BLOCK_BYTES;
			const struct expected *one = &all[block + i];
			const char *why = block_judge(job, one, at, block + i,
						      flushed);
			struct block_head head;

			memcpy(&head, at, sizeof(head));
			newer += !why && head.sequence > flushed;
			if (why && bad++ < REPORTS_MAX)
				report(job, one, at, block + i, why);
		}
	}
	free(all);
	printf("verified %llu blocks, %llu wrong, flushed %llu, %llu newer\n",
	       (unsigned long long)job->blocks, (unsigned long long)bad,
	       (unsigned long long)flushed, (unsigned long long)newer);
	return bad ? 1 : 0;
}

/*
 * The last "flushed SEQ" in a log, which may be a console's: text before it on
 * the line is passed over, a line cut short by the crash is not counted.
 */
static int journal_read(const struct job *job, const char *path,
			uint64_t *ret_flushed)
{
	FILE *file = strcmp(path, "-") ? fopen(path, "re") : stdin;
	char *line = NULL, mark[128];
	size_t room = 0;
	int length;

	if (!file) {
		fprintf(stderr, "blkverify: %s: %s\n", path, strerror(errno));
		return -EIO;
	}
	length = snprintf(mark, sizeof(mark), "flushed %s%s",
			  job->name ? job->name : "", job->name ? " " : "");
	*ret_flushed = 0;
	while (getline(&line, &room, file) > 0) {
		char *at = strstr(line, mark);
		uint64_t value;

		if (!at || strncmp(line, "verified", 8) == 0 ||
		    !strchr(at, '\n'))
			continue;
		at[strcspn(at, "\r\n")] = '\0';
		if (tools_number(at + length, 1, job->ops, &value) &&
		    value > *ret_flushed)
			*ret_flushed = value;
	}
	free(line);
	if (file != stdin)
		fclose(file);
	return 0;
}

static int job_open(struct job *job, bool writing)
{
	int flags = (writing ? O_RDWR | O_CREAT : O_RDONLY) | O_CLOEXEC;
	off_t end = (off_t)((job->offset_mib + job->mib) << 20);
	struct stat st;

	job->fd = open(job->path, flags | (job->buffered ? 0 : O_DIRECT), 0644);
	if (job->fd < 0 && errno == EINVAL && !job->buffered)
		job->fd = open(job->path, flags, 0644);
	if (job->fd < 0 || fstat(job->fd, &st))
		return -errno;
	job->is_device = S_ISBLK(st.st_mode);
	if (writing && S_ISREG(st.st_mode) && st.st_size < end &&
	    ftruncate(job->fd, end))
		return -errno;
	return 0;
}

static int job_init(struct job *job, bool writing)
{
	void *buffer;
	int rc;

	job->blocks = (job->mib << 20) / BLOCK_BYTES;
	job->interval = calloc(job->blocks, sizeof(*job->interval));
	if (!job->interval ||
	    posix_memalign(&buffer, BLOCK_BYTES, READ_BLOCKS * BLOCK_BYTES))
		return -ENOMEM;
	job->buffer = buffer;
	crc_init(job);
	rc = job_open(job, writing);
	if (rc)
		fprintf(stderr, "blkverify: %s: %s\n", job->path,
			strerror(-rc));
	return rc;
}

static int usage(void)
{
	fputs("usage: blkverify [option...] PATH\n"
	      "  without --verify: operate on PATH, then verify it all\n"
	      "  --verify SEQ           verify; SEQ was the last flushed\n"
	      "  --verify-journal FILE  the same, SEQ from the log (- stdin)\n"
	      "  --seed S (1)  --mib M (64)  --ops N (1000)\n"
	      "  --sync-every K (32)    operations between flushes\n"
	      "  --discard PCT (0)  --zero PCT (0)  shares of the operations\n"
	      "  --offset MIB (0)       where the region starts\n"
	      "  --name NAME            print \"flushed NAME SEQ\"\n"
	      "  --buffered             through the page cache\n"
	      "The region must read as zeroes at first.  Verify with the\n"
	      "options of the run.\n",
	      stderr);
	return 2;
}

static const struct option long_options[] = {
	{ "seed", required_argument, NULL, 's' },
	{ "mib", required_argument, NULL, 'm' },
	{ "ops", required_argument, NULL, 'n' },
	{ "sync-every", required_argument, NULL, 'k' },
	{ "discard", required_argument, NULL, 'd' },
	{ "zero", required_argument, NULL, 'z' },
	{ "offset", required_argument, NULL, 'o' },
	{ "name", required_argument, NULL, 'N' },
	{ "buffered", no_argument, NULL, 'b' },
	{ "verify", required_argument, NULL, 'v' },
	{ "verify-journal", required_argument, NULL, 'j' },
	{ 0 },
};

static bool job_option(struct job *job, int opt, const char *text)
{
	switch (opt) {
	case 's':
		return tools_number(text, 0, UINT64_MAX, &job->seed);
	case 'm':
		return tools_number(text, 1, BLOCKS_MAX >> 8, &job->mib);
	case 'n':
		return tools_number(text, 1, OPS_MAX, &job->ops);
	case 'k':
		return tools_number(text, 1, OPS_MAX, &job->sync_every);
	case 'd':
		return tools_number(text, 0, 100, &job->discard);
	case 'z':
		return tools_number(text, 0, 100, &job->zeroed);
	case 'o':
		return tools_number(text, 0, 1u << 30, &job->offset_mib);
	case 'N':
		job->name = text;
		return strlen(text) < 64;
	case 'b':
		return job->buffered = true;
	default:
		return false;
	}
}

int blkverify_main(int argc, char **argv)
{
	struct job job = {
		.seed = 1,
		.mib = 64,
		.ops = 1000,
		.sync_every = 32,
		.fd = -1,
	};
	const char *journal = NULL;
	bool verify = false;
	uint64_t flushed = 0;
	int opt;

	while ((opt = getopt_long(argc, argv, "", long_options, NULL)) != -1) {
		if (opt == 'j') {
			journal = optarg;
			verify = true;
		} else if (opt == 'v') {
			verify = true;
			if (!tools_number(optarg, 0, OPS_MAX, &flushed))
				return usage();
		} else if (!job_option(&job, opt, optarg)) {
			return usage();
		}
	}
	if (optind != argc - 1 || job.discard + job.zeroed > 100)
		return usage();
	job.path = argv[optind];
	if (job_init(&job, !verify))
		return 1;
	if (journal && journal_read(&job, journal, &flushed))
		return 1;
	if (verify)
		return job_verify(&job, flushed);
	return job_run(&job) || job_verify(&job, job.ops);
}

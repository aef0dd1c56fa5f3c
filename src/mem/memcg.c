/* SPDX-License-Identifier: Apache-2.0 */
#include "mem/memcg.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>

#include "base/arith.h"
#include "base/cleanup.h"
#include "base/io.h"
#include "base/size.h"

/* v1 writes "no limit" as the largest multiple of the page size. */
#define UNLIMITED (1ull << 62)

/* Where the memory controller is, and which of its groups is ours. */
struct place {
	bool v1, v2;
	char v1_path[PATH_MAX], v2_path[PATH_MAX]; /* as in /proc/self/cgroup */
	char dir[PATH_MAX];			   /* ours, below root */
	size_t mount_len;			   /* dir of the topmost */
};

/* Is word one of the comma-separated words of list? */
static bool list_has(const char *list, const char *word)
{
	size_t len = strlen(word);

	while (*list) {
		size_t item = strcspn(list, ",\n");

		if (item == len && !memcmp(list, word, len))
			return true;
		list += item;
		list += *list != '\0';
	}
	return false;
}

/* "4:memory:/path" or "0::/path". */
static void take_cgroup_line(struct place *place, char *line)
{
	char *controllers = strchr(line, ':');
	char *path = controllers ? strchr(controllers + 1, ':') : NULL;

	if (!path)
		return;
	*path++ = '\0';
	controllers++;
	path[strcspn(path, "\n")] = '\0';
	/* Out of the namespace: all that can be seen is the mounted root. */
	if (*path != '/' || strstr(path, "/..") || strlen(path) >= PATH_MAX)
		path[0] = '\0';
	if (list_has(controllers, "memory")) {
		place->v1 = true;
		snprintf(place->v1_path, PATH_MAX, "%s", path);
	} else if (!*controllers) {
		place->v2 = true;
		snprintf(place->v2_path, PATH_MAX, "%s", path);
	}
}

/* mountinfo writes blanks and backslashes as \040. In place. */
static void unescape(char *text)
{
	char *to = text;

	for (const char *from = text; *from; to++) {
		unsigned int code;

		if (from[0] == '\\' && sscanf(from, "\\%3o", &code) == 1 &&
		    strspn(from + 1, "01234567") >= 3) {
			*to = (char)code;
			from += 4;
		} else {
			*to = *from++;
		}
	}
	*to = '\0';
}

/*
 * "36 35 0:30 ROOT MOUNT OPTIONS ... - TYPE SOURCE SUPER": if it is where our
 * group can be seen, its directory into place. A mount may show a part of the
 * tree only, from ROOT on.
 */
static bool take_mount_line(struct place *place, char *line)
{
	char *type = strstr(line, " - "), *save = NULL, *fields[5];
	const char *path = place->v1 ? place->v1_path : place->v2_path;
	size_t len;

	if (!type)
		return false;
	*type = '\0';
	type += 3;
	if (place->v1 ? strncmp(type, "cgroup ", 7) != 0 ||
				!list_has(strrchr(type, ' ') + 1, "memory")
		      : strncmp(type, "cgroup2 ", 8) != 0)
		return false;
	for (int i = 0; i < 5; i++) {
		fields[i] = strtok_r(i ? NULL : line, " ", &save);
		if (!fields[i])
			return false;
	}
	unescape(fields[3]);
	unescape(fields[4]);
	len = strcmp(fields[3], "/") ? strlen(fields[3]) : 0;
	if (strncmp(path, fields[3], len) != 0 ||
	    (path[len] && path[len] != '/'))
		path = "/";
	else
		path += len;
	place->mount_len = strlen(fields[4]);
	return snprintf(place->dir, sizeof(place->dir), "%s%s", fields[4],
			strcmp(path, "/") ? path : "") < PATH_MAX;
}

/* Each line of a file below root to fn, until it returns true. */
static bool each_line(const char *root, const char *file, struct place *place,
		      bool (*fn)(struct place *, char *))
{
	_cleanup_free_ char *line = NULL;
	_cleanup_fclose_ FILE *f = NULL;
	char path[PATH_MAX];
	size_t size = 0;

	if (snprintf(path, sizeof(path), "%s%s", root, file) >= PATH_MAX)
		return false;
	f = fopen(path, "re");
	if (!f)
		return false;
	while (getline(&line, &size, f) > 0) {
		if (fn(place, line))
			return true;
	}
	return false;
}

static bool cgroup_line(struct place *place, char *line)
{
	take_cgroup_line(place, line);
	return false;
}

static int open_file(const char *root, const char *dir, const char *file)
{
	char path[PATH_MAX];

	if (snprintf(path, sizeof(path), "%s%s/%s", root, dir, file) >=
	    PATH_MAX)
		return -1;
	return open(path, O_RDONLY | O_CLOEXEC);
}

static void level_close(struct memcg_level *level)
{
	close_fd(&level->max_fd);
	close_fd(&level->high_fd);
	close_fd(&level->usage_fd);
	close_fd(&level->stat_fd);
	free(level->dir);
	level->dir = NULL;
}

/* The root cgroup of v2 has no limit and is left out. */
static void add_level(struct memcg *cg, const char *root, const char *dir)
{
	const char *max = cg->v2 ? "memory.max" : "memory.limit_in_bytes";
	const char *usage = cg->v2 ? "memory.current" : "memory.usage_in_bytes";
	struct memcg_level *level = &cg->levels[cg->num_levels];

	*level = (struct memcg_level){
		.dir = strdup(dir),
		.max_fd = open_file(root, dir, max),
		.high_fd = cg->v2 ? open_file(root, dir, "memory.high") : -1,
		.usage_fd = open_file(root, dir, usage),
		.stat_fd = open_file(root, dir, "memory.stat"),
	};
	if (level->dir && level->max_fd >= 0 && level->usage_fd >= 0)
		cg->num_levels++;
	else
		level_close(level);
}

/* Our group and those above it, as far as they are mounted. */
static void add_levels(struct memcg *cg, const char *root, struct place *place)
{
	while (cg->num_levels < MEMCG_MAX_LEVELS) {
		char *end = strrchr(place->dir, '/');

		add_level(cg, root, place->dir);
		if (strlen(place->dir) <= place->mount_len || !end)
			break;
		*end = '\0';
	}
}

void memcg_open(struct memcg *ret, const char *root)
{
	struct place *place = calloc(1, sizeof(*place));

	memset(ret, 0, sizeof(*ret));
	if (!place)
		return;
	(void)each_line(root, "/proc/self/cgroup", place, cgroup_line);
	ret->v2 = !place->v1;
	if ((place->v1 || place->v2) &&
	    each_line(root, "/proc/self/mountinfo", place, take_mount_line))
		add_levels(ret, root, place);
	free(place);
}

void memcg_close(struct memcg *cg)
{
	for (unsigned int i = 0; i < cg->num_levels; i++)
		level_close(&cg->levels[i]);
	cg->num_levels = 0;
}

/* A file of one number; otherwise when there is none or it says "max". */
static uint64_t read_number(int fd, uint64_t otherwise)
{
	uint64_t value = 0;
	char text[64];

	if (fd < 0 || io_pread_text(fd, text, sizeof(text)) < 0 ||
	    size_parse_u64(text, &value) || value >= UNLIMITED)
		return otherwise;
	return value;
}

/* The value of "\nkey value", 0 if it is not there. */
static uint64_t stat_value(const char *text, const char *key)
{
	size_t len = strlen(key);
	unsigned long long value = 0;

	while (text) {
		if (!strncmp(text, key, len) && text[len] == ' ')
			return sscanf(text + len, " %llu", &value) == 1 ? value
									: 0;
		text = strchr(text, '\n');
		if (text)
			text++;
	}
	return 0;
}

/* Page cache in the group and below it. Dirty pages wait for the disk only. */
static uint64_t reclaimable(const struct memcg *cg, int stat_fd)
{
	char text[8192];
	uint64_t sum;

	if (stat_fd < 0 || io_pread_text(stat_fd, text, sizeof(text)) < 0)
		return 0;
	if (!add_u64(stat_value(text, cg->v2 ? "inactive_file"
					     : "total_inactive_file"),
		     stat_value(text,
				cg->v2 ? "active_file" : "total_active_file"),
		     &sum))
		return 0;
	return sum;
}

static void level_room(const struct memcg *cg, const struct memcg_level *level,
		       uint64_t need_bytes, struct memcg_room *ret)
{
	uint64_t max = read_number(level->max_fd, UINT64_MAX);
	uint64_t high = read_number(level->high_fd, UINT64_MAX);
	uint64_t limit = MIN(max, high), usage, left, cache;

	*ret = (struct memcg_room){
		.left_bytes = UINT64_MAX,
		.limit_bytes = limit,
		.dir = level->dir,
		.file = high < max ? "memory.high"
			: cg->v2   ? "memory.max"
				   : "memory.limit_in_bytes",
	};
	if (limit == UINT64_MAX)
		return;
	usage = read_number(level->usage_fd, 0);
	left = limit > usage ? limit - usage : 0;
	if (left < need_bytes) {
		/* usage - cache stays; over the limit that may still be */
		cache = MIN(reclaimable(cg, level->stat_fd), usage);
		usage -= cache;
		left = limit > usage ? limit - usage : 0;
	}
	ret->left_bytes = left;
}

void memcg_room(const struct memcg *cg, uint64_t need_bytes,
		struct memcg_room *ret)
{
	struct memcg_room room;

	*ret = (struct memcg_room){ .left_bytes = UINT64_MAX,
				    .limit_bytes = UINT64_MAX };
	for (unsigned int i = 0; i < cg->num_levels; i++) {
		level_room(cg, &cg->levels[i], need_bytes, &room);
		if (room.left_bytes < ret->left_bytes)
			*ret = room;
	}
}

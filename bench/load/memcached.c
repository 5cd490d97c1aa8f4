/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A client of memcached: one value is set, then got again and again over one connection, as
 * programs with a cache do (text protocol).
 *
 *	memcached client ADDRESS SIZE MILLISECONDS
 */
#include "load.h"

#define KEY "sockredir-bench"
#define GET "get " KEY "\r\n"
#define WARM_UP 200

static char *buffer;
static size_t room;

/* Reads until the buffer ends in `end`. */
static void hear(int fd, const char *end)
{
	size_t have = 0, length = strlen(end);

	do {
		ssize_t got = receive(fd, buffer + have, room - have);

		if (got <= 0)
			err(1, "recv");
		have += got;
	} while (have < length || memcmp(buffer + have - length, end, length));
}

static void get(int fd)
{
	send_all(fd, GET, sizeof(GET) - 1);
	hear(fd, "END\r\n");
}

int main(int argc, char **argv)
{
	uint64_t start, end, cpu, now, operations = 0;
	size_t size, length;
	int fd;

	if (argc < 5)
		errx(2, "see memcached.c for the arguments");
	size = strtoul(argv[3], NULL, 10);
	room = size + 4096;
	buffer = allocate(room);
	fd = join(argv[2]);
	length = sprintf(buffer, "set " KEY " 0 0 %zu\r\n", size);
	memset(buffer + length, 'v', size);
	memcpy(buffer + length + size, "\r\n", 2);
	send_all(fd, buffer, length + size + 2);
	hear(fd, "STORED\r\n");
	for (int i = 0; i < WARM_UP; i++)
		get(fd);
	cpu = cpu_ns();
	start = now_ns();
	end = start + strtoul(argv[4], NULL, 10) * 1000000;
	while ((now = now_ns()) < end) {
		get(fd);
		operations++;
	}
	cpu = cpu_ns() - cpu;
	printf("{\"operations\": %lu, \"seconds\": %.9f, \"cpu_seconds\": %.9f}\n", operations,
	       (now - start) / 1e9, cpu / 1e9);
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Short connections in blocks, to a server that stays: for each line on stdin, that many of them,
 * one after the other, and a line with the time they took.
 *
 *	blocks echo ADDRESS [delay]	SIZE bytes there and back, of `crr server ADDRESS SIZE 0`
 *	blocks http ADDRESS		a page
 *
 * `delay`: without TCP_NODELAY.
 */
#include "load.h"

#define SIZE 64
#define SMALLEST_PAGE 1024

static const char request[] = "GET /index.html HTTP/1.0\r\nHost: localhost\r\n\r\n";

static void echo(int fd)
{
	static char buffer[SIZE] = "x";

	send_all(fd, buffer, sizeof(buffer));
	if (!recv_all(fd, buffer, sizeof(buffer)))
		errx(1, "no answer");
}

static void http(int fd)
{
	static char page[65536];
	ssize_t got;
	size_t size = 0;

	send_all(fd, request, sizeof(request) - 1);
	while ((got = receive(fd, page + size, sizeof(page) - size)) > 0)
		size += got;
	if (got || size < SMALLEST_PAGE || memcmp(page, "HTTP/1.1 200", 12))
		errx(1, "%zu bytes that are no page", size);
}

int main(int argc, char **argv)
{
	char line[16];

	if (argc < 3)
		errx(2, "see blocks.c for the arguments");
	void (*use)(int) = strcmp(argv[1], "echo") ? http : echo;
	int (*connected)(const char *) = argc > 3 || use == http ? dial : join;

	while (fgets(line, sizeof(line), stdin)) {
		uint64_t count = strtoul(line, NULL, 10), start = now_ns(), cpu = cpu_ns();

		for (uint64_t i = 0; i < count; i++) {
			int fd = connected(argv[2]);

			use(fd);
			close(fd);
		}
		cpu = cpu_ns() - cpu;
		printf("{\"operations\": %lu, \"seconds\": %.9f, \"cpu_seconds\": %.9f}\n", count,
		       (now_ns() - start) / 1e9, cpu / 1e9);
		fflush(stdout);
	}
	return 0;
}

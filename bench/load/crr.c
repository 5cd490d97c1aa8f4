/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * connect, one request and response of `size` bytes, close: one connection after the other.
 *
 *	crr server ADDRESS SIZE [defer]
 *	crr client ADDRESS SIZE MILLISECONDS
 *
 * `defer`: the listener has TCP_DEFER_ACCEPT. The last connection carries no request.
 */
#include "load.h"

#define WARM_UP 50		/* connections */

static char *buffer;
static size_t size;

static void server(const char *address, int defer)
{
	int listener = serve(address, defer);
	uint64_t cpu = 0, served = 0;

	for (;;) {
		int fd = welcome(listener, address);
		int asked = recv_all(fd, buffer, size);

		if (asked && buffer[0] == 'E')
			break;
		send_all(fd, buffer, size);
		/* the client closes first, as most do that ask once; it has TIME_WAIT */
		recv(fd, buffer, 1, 0);
		close(fd);
		if (served++ == WARM_UP)
			cpu = cpu_ns();
	}
	printf("{\"operations\": %lu, \"cpu_seconds\": %.9f}\n", served - WARM_UP,
	       (cpu_ns() - cpu) / 1e9);
}

static void once(const char *address)
{
	int fd = join(address);

	send_all(fd, buffer, size);
	if (!recv_all(fd, buffer, size))
		errx(1, "no answer");
	close(fd);
}

static void client(const char *address, int milliseconds)
{
	uint64_t start, end, cpu, now, operations = 0;

	for (int i = 0; i < WARM_UP; i++)
		once(address);
	cpu = cpu_ns();
	start = now_ns();
	end = start + milliseconds * 1000000ULL;
	while ((now = now_ns()) < end) {
		once(address);
		operations++;
	}
	cpu = cpu_ns() - cpu;
	printf("{\"operations\": %lu, \"seconds\": %.9f, \"cpu_seconds\": %.9f}\n", operations,
	       (now - start) / 1e9, cpu / 1e9);
	buffer[0] = 'E';
	send_all(join(address), buffer, size);
}

int main(int argc, char **argv)
{
	if (argc < 4)
		errx(2, "see crr.c for the arguments");
	size = strtoul(argv[3], NULL, 10);
	buffer = allocate(size);
	if (!strcmp(argv[1], "server"))
		server(argv[2], argc > 4);
	else if (argc > 4)
		client(argv[2], atoi(argv[4]));
	else
		errx(2, "see crr.c for the arguments");
	return 0;
}

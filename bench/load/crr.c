/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * connect, one request and response of `size` bytes, close: one connection after the other.
 *
 *	crr server ADDRESS SIZE WARM_UP [defer] [delay]
 *	crr client ADDRESS SIZE WARM_UP MILLISECONDS
 *
 * WARM_UP connections are not measured. `defer`: the listener has TCP_DEFER_ACCEPT. `delay`: no
 * TCP_NODELAY. The last connection carries no request.
 */
#include "load.h"

#define SETTLE_US 200000	/* until the daemon has written down what those have taught */

static char *buffer;
static size_t size;
static uint64_t warm_up;

static void server(const char *address, int defer, int delay)
{
	int listener = serve(address, defer);
	uint64_t cpu = 0, served = 0;

	for (;;) {
		int fd = delay ? pick_up(listener) : welcome(listener, address);
		int asked = recv_all(fd, buffer, size);

		if (asked && buffer[0] == 'E')
			break;
		send_all(fd, buffer, size);
		/* the client closes first, as most do that ask once; it has TIME_WAIT */
		receive(fd, buffer, 1);
		close(fd);
		if (served++ == warm_up)
			cpu = cpu_ns();
	}
	printf("{\"operations\": %lu, \"cpu_seconds\": %.9f}\n", served - warm_up,
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

	for (uint64_t i = 0; i < warm_up; i++)
		once(address);
	usleep(SETTLE_US);
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
	if (argc < 5)
		errx(2, "see crr.c for the arguments");
	size = strtoul(argv[3], NULL, 10);
	warm_up = strtoul(argv[4], NULL, 10);
	buffer = allocate(size);
	if (!strcmp(argv[1], "server"))
		server(argv[2], given(argv + 5, "defer"), given(argv + 5, "delay"));
	else if (argc > 5)
		client(argv[2], atoi(argv[5]));
	else
		errx(2, "see crr.c for the arguments");
	return 0;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A client of memcached or redis: one value is set, then got again and again over a pool of
 * connections, one request on each at a time, as programs with a cache do.
 *
 *	cache memcached|redis ADDRESS SIZE CONNECTIONS MILLISECONDS [pause]
 *
 * `pause`: the warm-up lasts until a line comes on stdin.
 */
#include "load.h"
#include <fcntl.h>

#define KEY "sockredir-bench"
#define KEY_OF_REDIS "$15\r\n" KEY "\r\n"
#define WARM_UP 200 /* requests */

static char *buffer;
static const char *request;
static size_t answer; /* bytes of one */

/* Sends what sets a value, which the server is to answer in so many words. */
static void set(int fd, const char *command, const char *value, size_t size, const char *done)
{
	char said[16] = "";

	send_all(fd, command, strlen(command));
	send_all(fd, value, size);
	send_all(fd, "\r\n", 2);
	if (!recv_all(fd, said, strlen(done)) || strcmp(said, done))
		errx(1, "set: %s", said);
}

static void memcached(int fd, const char *value, size_t size)
{
	char command[64];

	sprintf(command, "set " KEY " 0 0 %zu\r\n", size);
	set(fd, command, value, size, "STORED\r\n");
	request = "get " KEY "\r\n";
	answer = snprintf(NULL, 0, "VALUE " KEY " 0 %zu\r\n", size) + size + strlen("\r\nEND\r\n");
}

static void redis(int fd, const char *value, size_t size)
{
	char command[64];

	sprintf(command, "*3\r\n$3\r\nSET\r\n" KEY_OF_REDIS "$%zu\r\n", size);
	set(fd, command, value, size, "+OK\r\n");
	request = "*2\r\n$3\r\nGET\r\n" KEY_OF_REDIS;
	answer = snprintf(NULL, 0, "$%zu\r\n", size) + size + strlen("\r\n");
}

/* A request on each connection, and all answers. */
static void get(const int *fds, int connections)
{
	for (int i = 0; i < connections; i++)
		send_all(fds[i], request, strlen(request));
	for (int i = 0; i < connections; i++)
		if (!recv_all(fds[i], buffer, answer))
			errx(1, "the server has closed");
}

static void warm_up(const int *fds, int connections)
{
	for (int done = 0; done < WARM_UP; done += connections)
		get(fds, connections);
}

int main(int argc, char **argv)
{
	uint64_t start, end, cpu, now, operations = 0;
	int connections, *fds;
	size_t size;

	if (argc < 6)
		errx(2, "see cache.c for the arguments");
	size = strtoul(argv[3], NULL, 10);
	connections = atoi(argv[4]);
	buffer = allocate(size + 4096);
	fds = calloc(connections, sizeof(*fds));
	for (int i = 0; i < connections; i++) {
		fds[i] = join(argv[2]);
		if (fcntl(fds[i], F_SETFL, O_NONBLOCK)) /* as event loops do */
			err(1, "O_NONBLOCK");
	}
	(strcmp(argv[1], "redis") ? memcached : redis)(fds[0], buffer, size);
	warm_up(fds, connections);
	if (given(argv + 6, "pause")) {
		say("paused");
		while (!told_to_go_on())
			warm_up(fds, connections);
	}
	cpu = cpu_ns();
	start = now_ns();
	end = start + strtoul(argv[5], NULL, 10) * 1000000;
	while ((now = now_ns()) < end) {
		get(fds, connections);
		operations += connections;
	}
	cpu = cpu_ns() - cpu;
	printf("{\"operations\": %lu, \"seconds\": %.9f, \"cpu_seconds\": %.9f}\n", operations,
	       (now - start) / 1e9, cpu / 1e9);
	return 0;
}

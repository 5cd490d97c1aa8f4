/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * A stream of writes of `size` bytes, measured where it is read: from the first byte to the end of
 * the stream, so that what is in flight when the writer stops is counted, and waited for.
 *
 *	stream server ADDRESS SIZE MILLISECONDS up|down|both
 *	stream client ADDRESS SIZE MILLISECONDS up|down|both
 *
 * up: the client writes; down: the server does; both: each end writes and reads at the same time.
 */
#include "load.h"
#include <pthread.h>

#define READ_SIZE (256 << 10)

static size_t size;
static uint64_t duration;

static void *write_stream(void *argument)
{
	int fd = *(int *)argument;
	char *buffer = allocate(size);
	uint64_t end = now_ns() + duration;
	size_t unchecked = 0;

	/* the clock is read every 16 KiB: a write of 64 bytes costs little more than that */
	for (;;) {
		send_all(fd, buffer, size);
		unchecked += size;
		if (unchecked < 16384)
			continue;
		unchecked = 0;
		if (now_ns() >= end)
			break;
	}
	if (shutdown(fd, SHUT_WR))
		err(1, "shutdown");
	return NULL;
}

static uint64_t read_stream(int fd, double *seconds)
{
	char *buffer = allocate(READ_SIZE);
	uint64_t bytes = 0, start = 0;
	ssize_t got = 0;

	while ((got = receive(fd, buffer, READ_SIZE)) > 0) {
		if (!start)
			start = now_ns();
		bytes += got;
	}
	if (got < 0)
		err(1, "recv");
	*seconds = (now_ns() - start) / 1e9;
	return bytes;
}

static void run(int fd, int writes, int reads)
{
	uint64_t cpu = cpu_ns(), bytes = 0;
	double seconds = 0;
	pthread_t writer;
	char byte;

	if (writes && pthread_create(&writer, NULL, write_stream, &fd))
		errx(1, "pthread_create");
	if (reads)
		bytes = read_stream(fd, &seconds);
	if (writes)
		pthread_join(writer, NULL);
	cpu = cpu_ns() - cpu;
	/* the reader's close says that it has read all: closing before would shorten its work */
	while (!reads && receive(fd, &byte, 1) > 0)
		;
	printf("{\"bytes\": %lu, \"seconds\": %.9f, \"cpu_seconds\": %.9f}\n", bytes, seconds,
	       cpu / 1e9);
}

int main(int argc, char **argv)
{
	int is_server, up, down, fd;

	if (argc < 6)
		errx(2, "see stream.c for the arguments");
	size = strtoul(argv[3], NULL, 10);
	duration = strtoul(argv[4], NULL, 10) * 1000000;
	is_server = !strcmp(argv[1], "server");
	up = strcmp(argv[5], "down");
	down = strcmp(argv[5], "up");
	fd = is_server ? welcome(serve(argv[2], 0), argv[2]) : join(argv[2]);
	if (is_server)
		run(fd, down, up);
	else
		run(fd, up, down);
	return 0;
}

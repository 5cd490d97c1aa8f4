/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Request and response, one outstanding per connection. SIZE is that of both in bytes, or
 * REQUEST/RESPONSE.
 *
 *	rr server ADDRESS SIZE CONNECTIONS [blocking]
 *	rr client ADDRESS SIZE CONNECTIONS IDLE MILLISECONDS [blocking] [pause]
 *
 * IDLE connections more are open and have carried one request each. `pause`: the warm-up lasts until
 * a line comes on stdin. One connection is read after poll(), with `blocking` inside recv(); several
 * are read after epoll_wait().
 */
#include "load.h"
#include <sys/epoll.h>

#define WARM_UP 200		/* requests per run */
#define MAX_SAMPLES (1 << 22)
#define MAX_EVENTS 512
#define START 'S'		/* first byte of the first measured request */

static char *buffer;
static size_t request, response; /* bytes */

struct span {
	uint64_t wall, cpu;
};

static struct span begin(void)
{
	return (struct span){ now_ns(), cpu_ns() };
}

static int watch(int epoll, int fd)
{
	struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };

	if (epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
		err(1, "epoll_ctl");
	return fd;
}

/* -- server ------------------------------------------------------------------------------------ */

static uint64_t answered;
static struct span started;

/* 0 when the client has closed. */
static int answer(int fd)
{
	if (!recv_all(fd, buffer, request))
		return 0;
	if (buffer[0] == START) {
		started = begin();
		answered = 0;
	}
	buffer[0] = 'x';
	send_all(fd, buffer, response);
	answered++;
	return 1;
}

static void server(const char *address, int connections)
{
	struct epoll_event events[MAX_EVENTS];
	int listener = serve(address, 0);
	int epoll = epoll_create1(0);
	int left = connections, accepted = 0;

	if (connections == 1) {
		int fd = welcome(listener, address);

		while (answer(fd))
			;
		left = 0;
	} else {
		watch(epoll, listener);
		polls = 0; /* epoll_wait() says what is readable */
	}
	while (left) {
		int ready = epoll_wait(epoll, events, MAX_EVENTS, -1);

		for (int i = 0; i < ready; i++) {
			int fd = events[i].data.fd;

			if (fd == listener) {
				watch(epoll, welcome(listener, address));
				if (++accepted == connections)
					close(listener);
			} else if (!answer(fd)) {
				/* close() is not enough while somebody else has the file open */
				epoll_ctl(epoll, EPOLL_CTL_DEL, fd, NULL);
				close(fd);
				left--;
			}
		}
	}
	printf("{\"operations\": %lu, \"cpu_seconds\": %.9f}\n", answered,
	       (cpu_ns() - started.cpu) / 1e9);
}

/* -- client ------------------------------------------------------------------------------------ */

static uint32_t *samples;	/* ns */
static uint64_t measured;

static void keep(uint64_t ns)
{
	samples[measured++ % MAX_SAMPLES] = ns;
}

static void ask(int fd)
{
	send_all(fd, buffer, request);
}

static void hear(int fd)
{
	if (!recv_all(fd, buffer, response))
		errx(1, "the server has closed");
}

static void warm_up(const int *fds, int connections)
{
	for (int i = 0; i < WARM_UP || i < connections; i++) {
		ask(fds[i % connections]);
		hear(fds[i % connections]);
	}
}

static void one_connection(int fd, uint64_t end, uint64_t before)
{
	while (before < end) {
		uint64_t after;

		ask(fd);
		hear(fd);
		after = now_ns();
		keep(after - before);
		before = after;
	}
}

static void several(const int *fds, int connections, int epoll, uint64_t end, uint64_t now)
{
	struct epoll_event events[MAX_EVENTS];
	uint64_t *sent = calloc(sysconf(_SC_OPEN_MAX), sizeof(*sent));
	int waiting = connections;

	if (!sent)
		err(1, "calloc");
	polls = 0; /* epoll_wait() says what is readable; the warm-up does not call it */
	for (int i = 0; i < connections; i++) {
		sent[fds[i]] = now;
		ask(fds[i]);
	}
	while (waiting) {
		int ready = epoll_wait(epoll, events, MAX_EVENTS, -1);

		for (int i = 0; i < ready; i++) {
			int fd = events[i].data.fd;

			hear(fd);
			now = now_ns();
			keep(now - sent[fd]);
			if (now < end) {
				sent[fd] = now;
				ask(fd);
			} else {
				waiting--;
			}
		}
	}
}

static int by_value(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return (x > y) - (x < y);
}

static double percentile_us(size_t count, double share)
{
	return samples[(size_t)(share * (count - 1))] / 1e3;
}

static void client(const char *address, int connections, int idle, int milliseconds, int pause)
{
	int *fds = calloc(connections + idle, sizeof(*fds));
	int epoll = epoll_create1(0);
	uint64_t end, wall, cpu;
	struct span start;
	size_t count;

	samples = (uint32_t *)allocate(MAX_SAMPLES * sizeof(*samples));
	for (int i = 0; i < connections + idle; i++)
		fds[i] = watch(epoll, join(address));
	for (int i = connections; i < connections + idle; i++) {
		ask(fds[i]);
		hear(fds[i]);
	}
	warm_up(fds, connections);
	if (pause) {
		say("paused");
		while (!told_to_go_on())
			warm_up(fds, connections);
	}
	buffer[0] = START;
	start = begin();
	end = start.wall + milliseconds * 1000000ULL;
	if (connections == 1)
		one_connection(fds[0], end, start.wall);
	else
		several(fds, connections, epoll, end, start.wall);
	wall = now_ns() - start.wall;
	cpu = cpu_ns() - start.cpu;
	count = measured < MAX_SAMPLES ? measured : MAX_SAMPLES;
	qsort(samples, count, sizeof(*samples), by_value);
	printf("{\"operations\": %lu, \"seconds\": %.9f, \"cpu_seconds\": %.9f, "
	       "\"p50_us\": %.3f, \"p99_us\": %.3f, \"p99.9_us\": %.3f}\n",
	       measured, wall / 1e9, cpu / 1e9, percentile_us(count, 0.5),
	       percentile_us(count, 0.99), percentile_us(count, 0.999));
}

int main(int argc, char **argv)
{
	if (argc < 5)
		errx(2, "see rr.c for the arguments");
	many_files();
	if (sscanf(argv[3], "%zu/%zu", &request, &response) != 2)
		request = response = strtoul(argv[3], NULL, 10);
	buffer = allocate(request > response ? request : response);
	polls = !given(argv + 5, "blocking");
	if (!strcmp(argv[1], "server"))
		server(argv[2], atoi(argv[4]));
	else if (argc >= 7)
		client(argv[2], atoi(argv[4]), atoi(argv[5]), atoi(argv[6]),
		       given(argv + 7, "pause"));
	else
		errx(2, "see rr.c for the arguments");
	return 0;
}

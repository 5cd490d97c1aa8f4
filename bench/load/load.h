/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the load generators share: addresses, clocks, whole messages, and one line of JSON as the
 * result. They are in C so that the time of an interpreter does not hide that of the kernel.
 */
#ifndef LOAD_H
#define LOAD_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

static inline uint64_t clock_ns(clockid_t clock)
{
	struct timespec t;

	clock_gettime(clock, &t);
	return t.tv_sec * 1000000000ULL + t.tv_nsec;
}

static inline uint64_t now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

/* CPU time of the whole process: the loopback's softirq runs in it, too. */
static inline uint64_t cpu_ns(void)
{
	return clock_ns(CLOCK_PROCESS_CPUTIME_ID);
}

static inline int is_unix(const char *address)
{
	return address[0] == '/';
}

/* `address` is a path, IP:PORT, or a port of 127.0.0.1; 0 lets the kernel choose one. */
static inline socklen_t parse(const char *address, struct sockaddr_storage *to)
{
	struct sockaddr_un *un = (void *)to;
	struct sockaddr_in *in = (void *)to;

	memset(to, 0, sizeof(*to));
	if (is_unix(address)) {
		un->sun_family = AF_UNIX;
		strncpy(un->sun_path, address, sizeof(un->sun_path) - 1);
		return sizeof(*un);
	}
	in->sin_family = AF_INET;
	in->sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if (strchr(address, ':')) {
		char ip[INET_ADDRSTRLEN] = "";

		sscanf(address, "%15[^:]", ip);
		if (inet_pton(AF_INET, ip, &in->sin_addr) != 1)
			errx(1, "%s", address);
		address = strchr(address, ':') + 1;
	}
	in->sin_port = htons(atoi(address));
	return sizeof(*in);
}

static inline void no_delay(int fd, const char *address)
{
	int on = 1;

	if (!is_unix(address) && setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)))
		err(1, "TCP_NODELAY");
}

/* Listens, and says so on stdout with the port: whoever started us waits for that. */
static inline int serve(const char *address, int defer_seconds)
{
	struct sockaddr_storage at;
	socklen_t length = parse(address, &at);
	int fd = socket(at.ss_family, SOCK_STREAM, 0), on = 1;

	if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) || bind(fd, (void *)&at, length))
		err(1, "bind %s", address);
	if (defer_seconds && setsockopt(fd, IPPROTO_TCP, TCP_DEFER_ACCEPT, &defer_seconds,
					sizeof(defer_seconds)))
		err(1, "TCP_DEFER_ACCEPT");
	if (listen(fd, 4096) || getsockname(fd, (void *)&at, &length))
		err(1, "listen %s", address);
	printf("%d\n", is_unix(address) ? 0 : ntohs(((struct sockaddr_in *)&at)->sin_port));
	fflush(stdout);
	return fd;
}

static inline int dial(const char *address)
{
	struct sockaddr_storage to;
	socklen_t length = parse(address, &to);
	int fd = socket(to.ss_family, SOCK_STREAM, 0);

	if (fd < 0 || connect(fd, (void *)&to, length))
		err(1, "connect %s", address);
	return fd;
}

static inline int join(const char *address)
{
	int fd = dial(address);

	no_delay(fd, address);
	return fd;
}

static inline int pick_up(int listener)
{
	int fd = accept(listener, NULL, NULL);

	if (fd < 0)
		err(1, "accept");
	return fd;
}

static inline int welcome(int listener, const char *address)
{
	int fd = pick_up(listener);

	no_delay(fd, address);
	return fd;
}

static inline void send_all(int fd, const char *buffer, size_t size)
{
	while (size) {
		ssize_t sent = send(fd, buffer, size, MSG_NOSIGNAL);

		if (sent < 0)
			err(1, "send");
		buffer += sent;
		size -= sent;
	}
}

/*
 * Whether to poll() before each recv(), as programs with an event loop do. A program that sleeps
 * inside recv() is left on TCP, unless blocking_readers = "accelerate".
 */
static int polls = 1;

static inline void await_data(int fd)
{
	struct pollfd readable = { .fd = fd, .events = POLLIN };

	if (polls && poll(&readable, 1, -1) != 1)
		err(1, "poll");
}

static inline ssize_t receive(int fd, char *buffer, size_t size)
{
	await_data(fd);
	return recv(fd, buffer, size, 0);
}

/* 0 at the end of the stream. */
static inline int recv_all(int fd, char *buffer, size_t size)
{
	while (size) {
		ssize_t got = receive(fd, buffer, size);

		if (got < 0)
			err(1, "recv");
		if (!got)
			return 0;
		buffer += got;
		size -= got;
	}
	return 1;
}

/* Whether an option is among the arguments, which end with NULL. */
static inline int given(char **arguments, const char *word)
{
	for (; *arguments; arguments++)
		if (!strcmp(*arguments, word))
			return 1;
	return 0;
}

static inline char *allocate(size_t size)
{
	char *buffer = malloc(size);

	if (!buffer)
		err(1, "malloc");
	memset(buffer, 'x', size);	/* pages are there before the clock runs */
	return buffer;
}

static inline void many_files(void)
{
	struct rlimit limit;

	getrlimit(RLIMIT_NOFILE, &limit);
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit))
		err(1, "RLIMIT_NOFILE");
}

static inline void say(const char *word)
{
	printf("%s\n", word);
	fflush(stdout);
}

/* Whether there is a line on stdin: whoever started us has done what he wanted to the connections. */
static inline int told_to_go_on(void)
{
	struct pollfd word = { .fd = 0, .events = POLLIN };
	char line[16];

	if (poll(&word, 1, 0) != 1)
		return 0;
	if (read(0, line, sizeof(line)) <= 0)
		errx(1, "nobody said to go on");
	return 1;
}

#endif

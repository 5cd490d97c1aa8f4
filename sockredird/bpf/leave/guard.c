/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * cgroup/setsockopt: a program asks of its socket what no member of a sockhash can do. It runs with
 * the socket locked, before the kernel carries the call out.
 *
 * From here on no message is redirected in either direction; the daemon takes the pair off the map,
 * as programs of this type may not. TCP_ULP cannot wait for that: it fails as on a kernel without
 * the protocol, after which TLS libraries encrypt by themselves.
 */
#pragma once
#include "../learn/learn.h"

#define SOL_SOCKET 1
#define SO_OOBINLINE 10
#define SO_LINGER 13
#define SO_RCVLOWAT 18
#define SO_ATTACH_FILTER 26
#define SO_TIMESTAMP_OLD 29
#define SO_TIMESTAMPNS_OLD 35
#define SO_TIMESTAMPING_OLD 37
#define SO_PEEK_OFF 42
#define SO_MAX_PACING_RATE 47
#define SO_ATTACH_BPF 50
#define SO_ZEROCOPY 60
#define SO_TXTIME 61
#define SO_TIMESTAMP_NEW 63
#define SO_TIMESTAMPNS_NEW 64
#define SO_TIMESTAMPING_NEW 65
#define SOL_TCP 6
#define TCP_USER_TIMEOUT 18
#define TCP_REPAIR 19
#define TCP_ULP 31
#define TCP_INQ 36
#define TCP_TX_DELAY 37
#define TCP_REPAIR_ON 1
#define ENOENT 2

inline_fn enum cause asked_of_tcp(__u32 name, __s32 value)
{
	switch (name) {
	case TCP_REPAIR:
		return value == TCP_REPAIR_ON ? CAUSE_REPAIR : 0;
	case TCP_INQ:
	case TCP_USER_TIMEOUT: /* it counts from what the peer has not acknowledged */
	case TCP_TX_DELAY:
		return value ? CAUSE_OPTION : 0;
	}
	return 0;
}

/* Options whose value is more than an int; `second` is 0 if they are not that long. */
inline_fn enum cause asked_of_socket(__u32 name, __s32 value, __s32 second)
{
	switch (name) {
	case SO_LINGER: /* with no time close() resets the connection, as on TCP */
		return value && second ? CAUSE_OPTION : 0;
	case SO_MAX_PACING_RATE: /* ~0: no limit */
		return value != -1 || (second && second != -1) ? CAUSE_OPTION : 0;
	case SO_ATTACH_FILTER:
	case SO_ATTACH_BPF:
	case SO_TXTIME:
		return CAUSE_OPTION;
	}
	return 0;
}

/* 0, or why the call does not go together with a sockhash. */
inline_fn enum cause asked_for(struct bpf_sockopt *ctx, __u32 level, __u32 name)
{
	__s32 *value = ctx->optval, second = 0;

	if (level == SOL_TCP && name == TCP_ULP)
		return CAUSE_ULP;
	if ((void *)(value + 1) > ctx->optval_end)
		return 0; /* EINVAL */
	if (level == SOL_TCP)
		return asked_of_tcp(name, *value);
	switch (name) {
	case SO_RCVLOWAT:
		return *value > 1 || *value < 0 ? CAUSE_RCVLOWAT : 0;
	case SO_ZEROCOPY:
		return *value ? CAUSE_ZEROCOPY : 0;
	case SO_OOBINLINE:
		return *value ? CAUSE_OOBINLINE : 0;
	case SO_TIMESTAMP_OLD:
	case SO_TIMESTAMP_NEW:
	case SO_TIMESTAMPNS_OLD:
	case SO_TIMESTAMPNS_NEW:
	case SO_TIMESTAMPING_OLD:
	case SO_TIMESTAMPING_NEW:
		return *value ? CAUSE_OPTION : 0;
	case SO_PEEK_OFF:
		return *value >= 0 ? CAUSE_OPTION : 0;
	}
	if ((void *)(value + 2) <= ctx->optval_end)
		second = value[1];
	return asked_of_socket(name, *value, second);
}

int sockredir_guard(struct bpf_sockopt *ctx)
{
	struct bpf_sock *sk = ctx->sk;
	__u32 level = ctx->level, name = ctx->optname;
	struct owner o = {};
	struct sock_state *st;
	enum cause reason;
	struct settings *s;
	struct listener l;
	__u64 address = 0;
	int zero = 0;

	/* longer than what the kernel copied for us (a page): it takes the program's own, or fails */
	if (ctx->optlen > ctx->optval_end - ctx->optval)
		ctx->optlen = 0;
	if ((level != SOL_SOCKET && level != SOL_TCP) || !sk)
		return 1;
	reason = asked_for(ctx, level, name);
	if (!reason)
		return 1;
	s = settings.lookup(&zero);
	/*
	 * While it connects the option may be set after the connection is established and looked
	 * at: this call holds the socket's lock, but the kernel lets go of it before it sets the
	 * option.
	 */
	st = sockets.sk_storage_get(sk, NULL, 0);
	if (!st && sk->state == BPF_TCP_SYN_SENT && s && !s->stopped)
		st = sockets.sk_storage_get(sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!st || !s)
		return 1;
	/* a pointer as a number */
	read_kernel(&address, sizeof(address), &sk);
	if (!psock_of(address)) {
		if (sk->state == BPF_TCP_SYN_SENT)
			WRITE_ONCE(st->guard_cause, (__u32)reason);
		return 1; /* not on the map, or off it already */
	}
	if (reason != CAUSE_ULP || s->ktls)
		refuse(st, reason);
	if (reason == CAUSE_ULP && !s->ktls)
		ask(REQUEST_ULP); /* the daemon looks whether it has */
	else if (st->self.side == SERVER) {
		/* it will ask again on its next connection; what a client asks is for its own */
		l = listener_of(st);
		owner_of_task(&o, bpf_get_current_task());
		add_learned(reason, &l, &st->flow, address, SERVER, &o);
	}
	if (reason == CAUSE_ULP)
		bpf_set_retval(-ENOENT);
	return 1;
}

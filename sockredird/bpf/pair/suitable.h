/* SPDX-License-Identifier: GPL-2.0-only */
/* Which sockets never go on a sockhash (I6): those that a program uses in a way no member of one can. */
#pragma once
#include "../peer_state.h"

#define E2BIG 7 /* errno.h, which the shim does not have */
#define ENOMEM 12
#define EBUSY 16
#define EEXIST 17

#define NO_PACING (~0ULL) /* sk_max_pacing_rate */

/*
 * Whether a program has asked for when its data is sent, how long close() or an acknowledgement may
 * take, or which packets reach it: all of that is TCP's doing.
 */
inline_fn int relies_on_tcp(struct tcp_sock *tp)
{
	return (own_has_flag(tp, SOCK_LINGER) && own_lingertime(tp)) || own_user_timeout(tp) ||
	       own_max_pacing_rate(tp) != NO_PACING || own_tx_delay(tp) ||
	       own_has_flag(tp, SOCK_TXTIME) || own_filter(tp);
}

/* CAUSE_NONE, or why a socket of this kind never goes on a sockhash. */
inline_fn enum cause unsuitable(struct tcp_sock *tp)
{
	/* before the ULP, which an MPTCP subflow has as well */
	if (own_is_mptcp(tp))
		return CAUSE_MPTCP;
	if (own_ulp_ops(tp))
		return CAUSE_ULP;
	if (own_has_flag(tp, SOCK_ZEROCOPY))
		return CAUSE_ZEROCOPY;
	if (own_has_flag(tp, SOCK_URGINLINE))
		return CAUSE_OOBINLINE;
	/* set before, or on the listener, from which it is inherited */
	if (own_rcvlowat(tp) > 1)
		return CAUSE_RCVLOWAT;
	if (own_has_flag(tp, SOCK_RCVTSTAMP) || own_tsflags(tp) || own_peek_off(tp) >= 0 ||
	    own_inq(tp) || relies_on_tcp(tp))
		return CAUSE_OPTION;
	if (own_is_kernel_socket(tp))
		return CAUSE_KERNEL_SOCKET;
	if (own_repair(tp))
		return CAUSE_REPAIR;
	if (own_syn_smc(tp))
		return CAUSE_ULP;
	if (memory_is_short((__u64)tp))
		return CAUSE_PRESSURE;
	return CAUSE_NONE;
}

/* The daemon takes idle pairs off the sockhash as it walks, once it has seen that it is nearly full. */
inline_fn void ask_for_room(void)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);

	if (s && !READ_ONCE(s->make_room))
		ask(REQUEST_WALK);
}

/* Why sock_hash_update() failed: sock_map_link() and sock_hash_update_common(). */
inline_fn enum cause cause_of_error(int err)
{
	switch (err) {
	case -E2BIG:
		ask_for_room();
		return CAUSE_MAP_FULL;
	case -EEXIST:
		return CAUSE_MISMATCH;
	case -EBUSY: /* its psock has an sk_msg program, and takes only one */
		return CAUSE_OTHER_SOCKMAP;
	case -ENOMEM:
		return CAUSE_NO_MEMORY;
	}
	return CAUSE_ULP; /* EINVAL: sk_psock_init() takes no socket with a ULP */
}

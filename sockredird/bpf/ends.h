/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What is read of sockets, and of the state of other sockets: each end knows the address of the
 * other's state, which is read like all kernel memory and believed only if it says the same pair.
 */

#define STATE_FIELD(dst, st, field) \
	KERNEL_FIELD(dst, st, __builtin_offsetof(struct sock_state, field))

/* Whether the state of an end is at the address, and not what the memory is used for by now. */
inline_fn int is_state_of(__u64 st, const struct end *end)
{
	struct end found = {};

	return st && !STATE_FIELD(found, st, self) && found.side == end->side &&
	       found.pair.client_seq == end->pair.client_seq &&
	       found.pair.server_seq == end->pair.server_seq;
}

/* The same, of an end that no program has closed. */
inline_fn int is_state_of_open(__u64 st, __u64 sk, const struct end *end)
{
	return psock_of(sk) && is_state_of(st, end);
}

/*
 * 0, or why a guard wants no message of this pair redirected: enum counter. Either end may be the one
 * that was refused. Guards write `refused`, then alert(); who wants to know reads in the other order.
 */
inline_fn __u32 refusal(const struct sock_state *st, __u64 peer_st)
{
	struct end peer = st->peer;
	__u32 reason = READ_ONCE(st->refused);

	if (!reason && is_state_of(peer_st, &peer))
		STATE_FIELD(reason, peer_st, refused);
	return reason;
}

/*
 * What was written about a socket is seen by whoever sends to it or from it after this; what senders
 * have done before it is seen after it.
 */
inline_fn void alert(struct sock_state *st)
{
	int zero = 0;
	__u64 *count = alerts.lookup(&zero);

	full_barrier(st);
	if (count)
		__sync_fetch_and_add(count, 1);
	full_barrier(st);
}

/* The server end's socket; 0 if it is not known yet, or gone. */
inline_fn __u64 server_of(const struct sock_state *st)
{
	struct end peer = st->peer;
	__u64 peer_st = st->peer_st, sk = 0;

	if (st->self.side == CLIENT)
		return st->peer_sk;
	if (is_state_of(peer_st, &peer))
		STATE_FIELD(sk, peer_st, peer_sk);
	return sk;
}

/* Whether something that came through TCP is unread. */
inline_fn int has_tcp_data(__u64 sk)
{
	__u64 next = 0, queue = sk + OFF_sock_sk_receive_queue;

	return sk && !KERNEL_FIELD(next, queue, 0) && next != queue;
}

/* What the daemon is asked for. */
enum request {
	REQUEST_WALK,
	REQUEST_LEARNED,	/* `learned` has changed */
	REQUEST_ULP,		/* is there a kernel TLS meanwhile? */
};

inline_fn void ask(enum request what)
{
	__u64 record = what;

	requests.ringbuf_output(&record, sizeof(record), 0);
}

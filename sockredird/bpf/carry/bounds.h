/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How much of a direction may be unread (I3): like TCP, in memory, and of all connections together.
 *
 * A direction has a budget of bytes and messages; while that lasts, a message costs two
 * subtractions. Each grant of a budget looks at what is unread, at the window of the direction, at
 * the memory limits of both ends' cgroups, and at the budget of the whole host.
 */
#pragma once
#include "../peer_state.h"
#include "../kernel.h"

#define GRANT_BYTES 65536
#define GRANT_MESSAGES 64
#define SMALL_GRANT_BYTES 4096 /* at first, and while memory is short */
#define SMALL_GRANT_MESSAGES 2
#define FIRST_WINDOW_BYTES 1048576 /* TCP holds 2.5 MB of large messages for a stalled reader */
#define FIRST_WINDOW_MESSAGES 64   /* and 30 KB of small ones, which share buffers */
#define MESSAGE_BYTES 1344 /* of kernel memory besides the payload: struct sk_msg, a page's rest */
#define PAGE_BYTES 4096
#define CGROUP_SHARE 16

/* Redirected bytes the peer has not read. Exact where the kernel counts them, else from above. */
inline_fn __u64 unread_bytes(struct sock_state *st, __u64 psock)
{
#ifdef PSOCK_COUNTS_BYTES
	return kernel_psock_msg_tot_len(psock);
#else
	if (psock_queue_empty(psock)) {
		st->drained.bytes = st->sent_bytes;
		st->drained.messages = st->sent_messages;
	}
	return st->sent_bytes - st->drained.bytes;
#endif
}

/* Messages that are unread, from above: those since the newest checkpoint that is read. */
inline_fn __u32 unread_messages(const struct sock_state *st, __u64 unread)
{
	__u64 read = st->sent_bytes - unread, known = 0;

	if (!unread)
		return 0;
#ifdef PSOCK_COUNTS_BYTES
#pragma unroll
	for (int i = 0; i < 16; i++)
		if (st->checkpoint[i].bytes <= read && st->checkpoint[i].messages > known)
			known = st->checkpoint[i].messages;
#else
	known = st->drained.messages;
#endif
	return st->sent_messages - known;
}

/*
 * Unread bytes with which the reader's socket still takes packets while somebody holds its lock:
 * what is redirected counts in sk_rmem_alloc, and tcp_add_backlog() drops what exceeds this and
 * 64 KiB. TCP sends such a packet again, unless it is a reset. The buffer grows when a packet finds
 * it full (tcp_clamp_window()), as one may after each pause for the window.
 */
inline_fn __u32 backlog_limit(__u64 peer)
{
	return 2 * kernel_rcvbuf(peer) + kernel_sndbuf(peer) / 2;
}

/*
 * The most bytes that may be unread: window_bytes, or less where a program chose a smaller buffer
 * (kept doubled, socket(7)) or TCP_NOTSENT_LOWAT.
 */
inline_fn __u32 most_bytes(struct tcp_sock *tp, const struct sock_state *st,
			   const struct settings *s)
{
	__u32 most = s->window_bytes, lowat = own_notsent_lowat(tp), size;

	if (buffer_locks(st->peer_sk) & SOCK_RCVBUF_LOCK) {
		size = kernel_rcvbuf(st->peer_sk) / 2;
		if (size < most)
			most = size;
	}
	if (buffer_locks((__u64)tp) & SOCK_SNDBUF_LOCK) {
		size = own_sndbuf(tp) / 2;
		if (size < most)
			most = size;
	}
	if (lowat && lowat < most)
		most = lowat;
	return most;
}

/*
 * Adds to a total unless that would exceed a limit, in bytes. A cgroup's may be below 0: senders go on
 * while it is forgotten to be counted anew, and a socket may be moved to another cgroup.
 */
inline_fn int take(__u64 *total, __s64 more, __u64 limit)
{
	if (more > 0 && (__s64)READ_ONCE(*total) + more > (__s64)limit)
		return 0;
	__sync_fetch_and_add(total, more);
	return 1;
}

/*
 * Whether the reader's cgroup has room below its memory limits. It is charged for what is redirected to
 * it, by an allocation for which the kernel kills a process before it fails, where TCP's would fail.
 * Others fill the cgroup as well, TCP's queues among them, so this is looked at in each jiffy, and
 * where little is left for each message.
 */
inline_fn int has_room(struct sock_state *st)
{
	enum room room = room_for(st->peer_sk);

	st->room_until = bpf_jiffies64() + (room == ROOM_PLENTY);
	return room != ROOM_NONE;
}

/* Whether all connections together have less than a sixteenth of that limit, with this. */
inline_fn int charge_cgroup(struct sock_state *st, const struct tightest *limit, __s64 more)
{
	__u64 key = limit->counter, zero = 0, *total;

	if (!key)
		return 1;
	total = cgroup_memory.lookup_or_try_init(&key, &zero);
	st->charged_cgroup = key;
	return total && take(total, more, limit->max * PAGE_BYTES / CGROUP_SHARE);
}

/*
 * Whether the host's budget, and that of the reader's cgroup, have room; takes it then. Both may be
 * taken by connections that are idle, or have ended unseen, and a cgroup's by those of one that was at
 * the same address: so a walk counts anew where there is none.
 */
inline_fn int charge(struct sock_state *st, const struct tightest *limit, __u32 bytes,
		     const struct settings *s)
{
	int zero = 0;
	struct unread_memory *all = unread_memory.lookup(&zero);
	__u32 grants = READ_ONCE(s->grants);
	__s64 more = (__s64)bytes - (st->grants == grants ? st->charged : 0);

	if (!all)
		return 0;
	if (charge_cgroup(st, limit, more)) {
		if (take(&all->charged[grants & 1], more, s->memory_bytes)) {
			st->charged = bytes;
			st->grants = grants;
			return 1;
		}
		charge_cgroup(st, limit, -more);
	}
	WRITE_ONCE(all->recount, 1);
	ask(REQUEST_WALK);
	return 0;
}

/*
 * Gives back what a direction has of the host's budget: as its connection ends, or a walk takes it off
 * the sockhash, or both at a time.
 */
inline_fn void discharge(struct sock_state *st, const struct settings *s)
{
	__u64 key = st->charged_cgroup, *of_cgroup = key ? cgroup_memory.lookup(&key) : NULL;
	__s64 held = take_all(&st->charged);
	__u32 grants = READ_ONCE(s->grants);
	int zero = 0;
	struct unread_memory *all = unread_memory.lookup(&zero);

	if (st->grants != grants)
		return; /* it has been counted anew since */
	if (all)
		__sync_fetch_and_add(&all->charged[grants & 1], -held);
	if (of_cgroup)
		__sync_fetch_and_add(of_cgroup, -held);
}

/* Counts what a direction has unread that asks for no new grant, as it may send no more. */
inline_fn void recount(struct sock_state *st, const struct settings *s, __u32 held)
{
	__u32 grants = READ_ONCE(s->grants);
	int zero = 0;
	struct unread_memory *all = unread_memory.lookup(&zero);

	if (all && held && st->grants != grants)
		__sync_fetch_and_add(&all->charged[grants & 1], held);
}

/*
 * The most messages that may be unread. That bounds small ones, which cost more than they carry;
 * what larger ones cost, TCP would hold as well.
 */
inline_fn __u32 most_messages(const struct sock_state *st, __u64 unread)
{
	return st->window_messages + (__u32)unread / (MESSAGE_BYTES / 2);
}

/*
 * The window starts with what TCP would hold, and doubles when the reader has read half as much and
 * is not behind. A short queue alone shows nothing: it is short at first for a reader that never
 * reads.
 */
inline_fn void adjust_window(struct sock_state *st, __u64 unread, __u32 messages, __u32 most)
{
	if (!st->window_bytes) {
		st->window_bytes = FIRST_WINDOW_BYTES;
		st->window_messages = FIRST_WINDOW_MESSAGES;
	} else if (unread <= st->window_bytes / 4 && messages <= most_messages(st, unread) / 4) {
		if (st->window_bytes < most && st->sent_bytes - unread >= st->window_bytes / 2)
			st->window_bytes *= 2;
		if (st->window_messages < most / MESSAGE_BYTES &&
		    st->sent_messages - messages >= st->window_messages / 2)
			st->window_messages *= 2;
	}
	if (st->window_bytes > most)
		st->window_bytes = most;
}

/* So far apart that the sixteen of them reach back over more than the window. */
inline_fn void take_checkpoint(struct sock_state *st)
{
	__u32 last = (st->checkpoints - 1) & 15, next = st->checkpoints & 15;

	if (st->checkpoints &&
	    st->sent_messages - st->checkpoint[last].messages < st->window_messages / 8)
		return;
	st->checkpoint[next].bytes = st->sent_bytes;
	st->checkpoint[next].messages = st->sent_messages;
	st->checkpoints++;
}

/*
 * Looks at the peer's queue and grants the next budget, for a message of `size` at least;
 * CAUSE_NONE, or why there is none. A message that fits the window when it begins may exceed it, as
 * on TCP, by one, if the socket still takes packets then.
 */
inline_fn enum cause grant(struct tcp_sock *tp, struct sock_state *st, __u64 psock, __u32 size,
			   const struct settings *s)
{
	__u64 unread = unread_bytes(st, psock);
	__u32 messages = unread_messages(st, unread);
	struct tightest reader_limit;
	__u32 held, bytes, count;
	__u32 most = most_bytes(tp, st, s), limit = backlog_limit(st->peer_sk), window;

	if (memory_is_short((__u64)tp) || near_socket_limit(st->peer_sk))
		return CAUSE_PRESSURE;
	adjust_window(st, unread, messages, most);
	window = st->window_bytes < limit ? st->window_bytes : limit;
	if (unread >= window || unread + size > limit)
		return CAUSE_WINDOW;
	if (messages >= most_messages(st, unread))
		return CAUSE_MESSAGES;
	if (!has_room(st))
		return CAUSE_MEMORY;
	reader_limit = memory_limit_of(st->peer_sk);
	bytes = st->sent_messages ? GRANT_BYTES : SMALL_GRANT_BYTES;
	count = st->sent_messages ? GRANT_MESSAGES : SMALL_GRANT_MESSAGES;
	held = unread + messages * MESSAGE_BYTES;
	if (!charge(st, &reader_limit, held + bytes + count * MESSAGE_BYTES + size, s)) {
		bytes = SMALL_GRANT_BYTES;
		count = SMALL_GRANT_MESSAGES;
		if (!charge(st, &reader_limit, held + bytes + count * MESSAGE_BYTES + size, s))
			return CAUSE_MEMORY;
	}
	if (bytes > window - unread)
		bytes = window - unread;
	/* in steps, or one message unread would count for a whole window of them */
	if (count > st->window_messages / 4)
		count = st->window_messages / 4;
	if (count > most_messages(st, unread) - messages)
		count = most_messages(st, unread) - messages;
	st->budget_bytes = bytes < size ? size : bytes;
	st->budget_messages = count;
	take_checkpoint(st);
	return CAUSE_NONE;
}

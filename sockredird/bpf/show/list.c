/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What a listing shows of a connection, and iter/task_file: which processes have its ends open.
 *
 * The server end writes the line for both, see peer_state.h.
 */
#pragma once
#include "events.h"

#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262

/* The kernel's struct bpf_iter__task_file; every member is a pointer in an 8-byte slot, or fd. */
struct bpf_iter__task_file {
	__u64 meta;
	__u64 task;
	__u32 fd;
	__u32 pad;
	__u64 file;
};

/* Notes on an accelerated socket who has it open. */
inline_fn void note_owner(struct sock *sk, __u64 task, __u32 listing)
{
	struct sock_state *st = sockets.sk_storage_get(sk, NULL, 0);
	struct owner o = {};

	if (!st)
		return;
	if (st->listing != listing) {
		st->listing = listing;
		st->owners = 0;
		owner_of_task(&o, task);
		st->owner = o;
	}
	st->owners++;
}

/*
 * The daemon runs this before a listing; and without one, for a line on every TCP socket: reading
 * /proc/PID/fd takes a capability the daemon does without.
 */
int sockredir_owners(struct bpf_iter__task_file *ctx)
{
	struct file *file = (void *)ctx->file;
	struct opened line = {};
	__u64 task = ctx->task;
	struct settings *s;
	struct socket *sock;
	struct sock *sk;
	__u16 protocol;
	int zero = 0;

	if (!file || !task)
		return 0;
	sock = bpf_sock_from_file(file);
	if (!sock)
		return 0;
	sk = sock_of(sock);
	s = settings.lookup(&zero);
	if (!sk || !s)
		return 0;
	if (s->listing) {
		note_owner(sk, task, s->listing);
		return 0;
	}
	protocol = kernel_protocol((__u64)sk);
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP)
		return 0;
	line.inode = inode_of((__u64)sk);
	owner_of_task(&line.owner, task);
	bpf_seq_write(*(struct seq_file **)ctx->meta, &line, sizeof(line));
	return 0;
}

/* Remembers what this direction has carried, for rates. */
inline_fn void take_sample(struct sock_state *st, __u64 now)
{
	if (now - st->sample[0].time < SAMPLE_NS)
		return;
	st->sample[1] = st->sample[0];
	st->sample[0].time = now;
	st->sample[0].bytes = st->sent_bytes;
	st->sample[0].messages = st->sent_messages;
}

inline_fn void rates(struct view *v, __u64 st, __u64 now)
{
	struct sample from = {};
	__u64 ms;

	STATE_FIELD(from, st, sample[0]);
	if (now - from.time < SAMPLE_NS)
		STATE_FIELD(from, st, sample[1]);
	if (!from.time) {
		STATE_FIELD(from.time, st, since);
		from.bytes = 0;
		from.messages = 0;
	}
	ms = (now - from.time) / 1000000;
	if (!ms)
		ms = 1;
	v->byte_rate = (v->bytes - from.bytes) * 1000 / ms;
	v->message_rate = (v->messages - from.messages) * 1000 / ms;
}

/* Bytes in the queue of `sk`; from above where the kernel does not count them. */
inline_fn __u32 queued(__u64 sk, __u64 sender_st)
{
	__u64 psock = psock_of(sk);
#ifdef PSOCK_COUNTS_BYTES
	return psock ? kernel_psock_msg_tot_len(psock) : 0;
#else
	__u64 sent = 0;
	struct checkpoint drained = {};

	if (!psock || psock_queue_empty(psock))
		return 0;
	STATE_FIELD(sent, sender_st, sent_bytes);
	STATE_FIELD(drained, sender_st, drained);
	return sent - drained.bytes;
#endif
}

inline_fn void look(struct view *v, __u64 sk, __u64 st, __u32 isn_1, __u64 now, __u32 listing)
{
	__u32 owners_of = 0;
	__u32 asked = 0;
	__u8 small = 0;

	STATE_FIELD(v->bytes, st, sent_bytes);
	STATE_FIELD(v->messages, st, sent_messages);
	STATE_FIELD(small, st, mode);
	v->mode = small;
	STATE_FIELD(asked, st, guard_cause);
	STATE_FIELD(small, st, reason);
	v->reason = asked ? asked : small;
	rates(v, st, now);
	STATE_FIELD(owners_of, st, listing);
	if (owners_of == listing) {
		STATE_FIELD(v->owner, st, owner);
		STATE_FIELD(v->owners, st, owners);
	}
	v->tcp_bytes = tcp_bytes(sk, isn_1, kernel_state(sk));
	v->uid = kernel_uid(sk);
	v->inode = inode_of(sk);
	v->cgroup = cgroup_of(sk);
}

inline_fn void total(struct totals *t, __u64 sk, __u64 st, __u32 isn_1)
{
	STATE_FIELD(t->bytes, st, sent_bytes);
	STATE_FIELD(t->messages, st, sent_messages);
	t->tcp_bytes = tcp_bytes(sk, isn_1, kernel_state(sk));
}

/* Where lines go: to who reads the iterator, or into the map `visits`. */
struct output {
	int iterates;
	struct seq_file *seq;
};

/* Returns 0 if there is no room for it. */
inline_fn int write_line(struct output out, const void *line, __u32 size)
{
	int zero = 0;
	struct visits *v;
	__u32 at;

	if (out.iterates)
		return !bpf_seq_write(out.seq, line, size);
	v = visits.lookup(&zero);
	if (!v)
		return 0;
	at = v->lines;
	if (at >= VISITS)
		return 0;
	__builtin_memcpy(&v->line[at], line, size);
	v->lines = at + 1;
	return 1;
}

/* One line for a connection, when its server end is visited; the client's, if that is gone. */
inline_fn void list(struct output out, __u64 sk, struct sock_state *st, const struct settings *s)
{
	struct connection *c;
	struct end self = st->self, peer = st->peer;
	__u64 own_st = (__u64)st, now = bpf_ktime_get_ns(), peer_sk, peer_st;
	struct other_end other = {};
	int zero = 0;

	c = line.lookup(&zero);
	if (!c)
		return;
	find_other_end(&other, st);
	peer_sk = other.sk;
	peer_st = other.st;
	take_sample(st, now);
	__builtin_memset(c, 0, sizeof(*c));
	c->pair = self.pair;
	c->flow = st->flow;
	c->joined = st->joined != 0;
	c->age = now - st->since;
	c->leaving = s->stopped || READ_ONCE(st->stop) || st->mode == NATIVE || st->guard_cause;
	if (self.side == SERVER) {
		c->server = st->server;
		look(&c->view[SERVER], sk, own_st, self.pair.server_seq, now, s->listing);
		c->view[SERVER].unread = queued(sk, peer_st);
		c->known = 1 << SERVER;
		if (is_state_of_open(peer_st, peer_sk, &peer)) {
			look(&c->view[CLIENT], peer_sk, peer_st, peer.pair.client_seq, now,
			     s->listing);
			c->view[CLIENT].unread = queued(peer_sk, own_st);
			c->known |= 1 << CLIENT;
		}
	} else {
		/* not paired yet, or listed by the server end */
		if (!peer_sk || psock_of(peer_sk))
			return;
		look(&c->view[CLIENT], sk, own_st, self.pair.client_seq, now, s->listing);
		c->known = 1 << CLIENT;
	}
	write_line(out, c, sizeof(*c));
}

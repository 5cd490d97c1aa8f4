/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * iter/sockmap: visits every socket on the sockhash, and takes pairs off the map that have to leave:
 * those with a direction on TCP, and all after Disable (I5). It writes a `struct member` for each end
 * that has to leave and cannot yet, and counts the others in `walked`: to read a line for each of
 * them would take the daemon six times as long as the kernel takes to walk.
 *
 * A pair leaves in three steps, each at least one RCU grace period (one epoch) after the other:
 * both directions are stopped; no redirect is in flight and both queues are empty; both keys are
 * deleted. Deleting earlier would purge unread data. Only the daemon walks, one walk at a time.
 */
#pragma once
#include "rewake.c"
#include "../carry/reader.h"
#include "../carry/bounds.h"
#include "../show/list.c"

/* The kernel's struct bpf_iter__sockmap; every member is a pointer in an 8-byte slot. */
struct bpf_iter__sockmap {
	__u64 meta;
	__u64 map;
	__u64 key;
	__u64 sk;
};

/*
 * No redirect from `sender`, 0 if that is not known, towards `sk` is in flight. A timer that is
 * disarmed meanwhile has to count among the references, or it would hide a sender's: they are read
 * first, which pairs with sk_stop_timer().
 */
inline_fn int none_in_flight(__u64 sk, __u64 sender, struct sock_state *st)
{
	__u64 sender_psock = psock_of(sender);
	__u32 refs;

	if (sender && (!sender_psock || kernel_psock_refcnt(sender_psock) == 1))
		return 1;
	/* a reader, asleep in recv(), has a reference to the sender's psock as well */
	refs = kernel_refcnt(sk);
	load_barrier(st);
	return refs && refs <= known_references(sk);
}

/* Holds for good once true, given that the sender is stopped and a grace period has passed. */
inline_fn int quiet(__u64 sk, __u64 sender, struct sock_state *st)
{
	__u64 psock = psock_of(sk);

	if (!psock)
		return 1; /* closed, or off the map */
	if (!none_in_flight(sk, sender, st))
		return 0;
	/* what was in flight before may be in the queue now; pairs with tcp_bpf_sendmsg() */
	load_barrier(st);
	return psock_queue_empty(psock);
}

#define BEGINS_WITHIN_NS 3000000000ULL /* a joined pair, or it only makes TCP slower */
#define SHOWN_BY_MESSAGES 8
#define SHOWS_WITHIN_MS 3		/* from accept() to poll(), for a program that polls */
#define PAIRED_WITHIN_NS 10000000000ULL /* SYN-ACK retransmissions included */
#define PASSES_BORDER_MS 100 /* a reader that has been woken, unless it is slow or asks FIONREAD */

/* A client end that was answered by a listener of somebody else, and has not noticed. */
inline_fn int left_waiting(const struct sock_state *st)
{
	struct pair pair = st->self.pair;
	struct handshake *hs;

	if (!st->provisional || st->peer_sk || bpf_ktime_get_ns() - st->since < PAIRED_WITHIN_NS)
		return 0;
	hs = handshakes.lookup(&pair);
	return !hs || !hs->server_sk;
}

/*
 * An end whose peer went over to TCP, and was off the map before a walk met it there: it was
 * closed, or shut down. Of an end that never sent anything the peer may not be known by then.
 */
inline_fn int left_behind(__u64 sk, const struct sock_state *st, __u64 peer_sk, __u64 peer_st)
{
	struct end peer = st->peer;

	return has_tcp_data(sk) && !is_state_of_open(peer_st, peer_sk, &peer);
}

/* Of an end that leaves for its peer's sake. */
inline_fn __u8 reason_of_peer(const struct sock_state *st, __u64 peer_st)
{
	struct end peer = st->peer;
	__u8 reason = 0;

	if (is_state_of(peer_st, &peer))
		STATE_FIELD(reason, peer_st, reason);
	return reason ? reason : CAUSE_HALF_CLOSED;
}

/*
 * Whether nothing shows yet that the reader polls. One that has taken several messages and was not
 * asleep at any of them does something else than sleep inside recv(). That may be to ask FIONREAD all
 * the time: where it leaves out redirected data, what has come by TCP shows nothing.
 */
inline_fn int reader_undecided(const struct sock_state *st, const struct settings *s)
{
	__u64 taken = st->sent_messages + (fionread_omits_redirected(s) ? 0 : st->reads_seen);

	return !s->blocking && st->unknown_since && st->reader == READER_UNKNOWN &&
	       taken < SHOWN_BY_MESSAGES && psock_of(st->peer_sk) && !polls(st->peer_sk);
}

/*
 * Whether such a reader has had time to show it. One that falls asleep on a member cannot be moved
 * any more, so this does not wait until it does.
 */
inline_fn int may_block(const struct sock_state *st, const struct settings *s)
{
	return reader_undecided(st, s) && (__s32)(now_ms() - st->unknown_since) >= SHOWS_WITHIN_MS;
}

/* Whether neither direction of a joined pair has been redirected yet. */
inline_fn int not_begun(const struct sock_state *st)
{
	struct end peer = st->peer;
	__u8 began = 0;

	if (!st->joined || st->began)
		return 0;
	if (is_state_of(st->peer_st, &peer))
		STATE_FIELD(began, st->peer_st, began);
	return !began;
}

/* Whether the reader has read nothing since a walk met it at a border. */
inline_fn int has_read_nothing(const struct sock_state *st)
{
	return st->border_since && st->border_copied == kernel_copied_seq(st->peer_sk);
}

/*
 * Whether the reader leaves TCP's data unread although it was woken. Where FIONREAD leaves that out,
 * it may be waiting for FIONREAD to tell of enough, which it does once the pair is off the sockhash.
 */
inline_fn int stays_at_border(const struct sock_state *st)
{
	return has_read_nothing(st) && st->mode != REDIRECT && fionread_omits_tcp() &&
	       (__s32)(now_ms() - st->border_since) >= PASSES_BORDER_MS;
}

/* CAUSE_NONE, or why a pair begins to leave, as far as this end shows. */
inline_fn __u8 why_leave(__u64 sk, const struct sock_state *st, __u64 peer_sk, __u64 peer_st,
			 const struct settings *s)
{
	if (st->guard_cause)
		return st->guard_cause;
	if (st->mode == NATIVE)
		return st->reason;
	if (left_waiting(st))
		return CAUSE_PEER_OUTSIDE;
	if (left_behind(sk, st, peer_sk, peer_st))
		return reason_of_peer(st, peer_st);
	if (not_begun(st) && bpf_ktime_get_ns() - st->since > BEGINS_WITHIN_NS)
		return CAUSE_NEVER_QUIET;
	if (memory_is_short(sk))
		return CAUSE_PRESSURE;
	if (stays_at_border(st))
		return CAUSE_TCP_UNREAD;
	return CAUSE_NONE;
}

/*
 * Whether neither end has sent for a while: one that sends moves tcp_due on within each interval of
 * revalidation (carry/redirect.c). It is joined again once it carries messages.
 */
inline_fn int is_idle(const struct sock_state *st, __u64 peer_st, const struct settings *s)
{
	__u64 past = bpf_jiffies64() - 2 * (__u64)s->revalidate, peer_due = 0;
	struct end peer = st->peer;

	if ((__s64)(st->tcp_due - past) > 0 || bpf_ktime_get_ns() - st->since < BEGINS_WITHIN_NS)
		return 0;
	if (is_state_of(peer_st, &peer))
		STATE_FIELD(peer_due, peer_st, tcp_due);
	return (__s64)(peer_due - past) <= 0;
}

/* Whether an idle pair that has nothing unread leaves, so that others find room on the sockhash. */
inline_fn int makes_room(__u64 sk, struct sock_state *st, __u64 peer_sk, __u64 peer_st,
			 struct settings *s)
{
	if (!s->make_room || !is_idle(st, peer_st, s) || !quiet(sk, peer_sk, st) ||
	    !quiet(peer_sk, sk, st))
		return 0;
	s->make_room--; /* one walk at a time, so nobody else writes this */
	return 1;
}

/* Stops this end of a leaving pair, and notes in which epoch the later one was stopped. */
inline_fn void stop_end(struct sock_state *st, struct leaving *l, const struct settings *s)
{
	__u8 side = 1 << (st->self.side & 1);

	if (l->stopped & side)
		return;
	WRITE_ONCE(st->stop, 1);
	if (st->mode != NATIVE)
		st->reason = l->reason;
	l->stopped |= side;
	l->stopped_in = s->epoch;
}

/*
 * Whether splice(2) does not find what is redirected: the pair is not stopped before that is read or
 * the daemon has reset the connection, see would_be_overtaken(). The cause is read first: pairs with
 * harmed() and sockredir_spliced().
 */
inline_fn int is_stuck_in_splice(__u64 sk, struct sock_state *st)
{
	if (READ_ONCE(st->guard_cause) != CAUSE_SPLICE)
		return 0;
	load_barrier(st);
	return READ_ONCE(st->reset_at) && has_redirected(sk);
}

/* The record of a pair that leaves; NULL if it has no reason to. */
inline_fn struct leaving *leaving_of(__u64 sk, struct sock_state *st, __u64 peer_sk, __u64 peer_st,
				     struct pair *pair, struct settings *s)
{
	struct leaving new = { .created = s->epoch, .stopped_in = s->epoch };
	struct leaving *l = leaving.lookup(pair);

	if (l)
		return l;
	new.reason = why_leave(sk, st, peer_sk, peer_st, s);
	if (is_stuck_in_splice(sk, st))
		return NULL; /* the call came after retire() has looked */
	if (!new.reason)
		new.reason = makes_room(sk, st, peer_sk, peer_st, s) ? CAUSE_IDLE : CAUSE_NONE;
	if (!new.reason)
		return NULL;
	leaving.update(pair, &new);
	return leaving.lookup(pair);
}

/* Whether both directions of a pair were stopped before the last grace period. */
inline_fn int both_stopped(const struct leaving *l, const struct settings *s)
{
	if (s->stopped)
		return s->epoch != s->stopped_in;
	if (!l)
		return 0;
	/* An end that two whole walks did not meet is not on the map. */
	if (l->stopped != 3 && s->epoch - l->created < 2)
		return 0;
	return s->epoch != l->stopped_in;
}

/* Whether the server end of a leaving pair was seen on the map. */
inline_fn int server_met(const struct leaving *l)
{
	return l && l->stopped == 3;
}

/* Records it under both views of the connection; `peer_st` is the peer's state's address, or 0. */
inline_fn void record_reason_both(enum cause reason, struct sock_state *st, __u64 peer_st)
{
	struct flow flow = st->flow;
	struct server_address server = st->server;

	record_reason(reason, &flow);
	if (st->self.side == CLIENT) {
		server.netns = 0;
		if (peer_st)
			STATE_FIELD(server, peer_st, server);
	}
	if (!server.netns)
		return;
	__builtin_memcpy(flow.server_ip, server.ip, 16);
	flow.netns = server.netns;
	flow.server_port = server.port;
	record_reason(reason, &flow);
}

/*
 * Whether a guard has refused this pair and nobody sends, so that no grace period has to pass: a
 * sender takes a reference to its psock, then looks whether a change was announced; here one was,
 * then we look at the references. With a full barrier between each two, as in half_closed(), one
 * sees the other.
 */
inline_fn int guarded_and_idle(__u64 sk, struct sock_state *st, __u64 peer_sk, __u64 peer_st)
{
	if (!peer_sk || !guard_cause_of(st, peer_st))
		return 0;
	announce_change(st);
	return idle_sender(sk, st) && idle_sender(peer_sk, st);
}

/* Why a pair leaves that does; of one that leaves for the daemon's sake alone, CAUSE_DISABLE. */
inline_fn enum cause reason_of(const struct sock_state *st, __u64 peer_st)
{
	__u32 reason = guard_cause_of(st, peer_st);

	/* of a direction that only paused, the reason is that of the pause */
	if (!reason && (st->mode == NATIVE || READ_ONCE(st->stop)))
		reason = READ_ONCE(st->reason);
	return !reason || reason >= CAUSES ? CAUSE_DISABLE : reason;
}

/* Takes both ends off the map and says why. Returns how many of them have unread TCP data. */
inline_fn int take_off(__u64 sk, struct sock_state *st, const struct other_end *other,
		       struct settings *s)
{
	/* read now: a guard may have refused the pair while retire() was looking at it */
	enum cause reason = reason_of(st, other->st);
	struct pair pair = st->self.pair;
	struct end self = st->self, peer = st->peer;
	int peer_open = is_state_of_open(other->st, other->sk, &peer);
	struct totals totals[2] = {};

	total(&totals[self.side & 1], sk, (__u64)st, isn_1_of(&self));
	if (peer_open)
		total(&totals[peer.side & 1], other->sk, other->st, isn_1_of(&peer));
	leaving.delete(&pair);
	peers.delete(&peer);
	peers.delete(&self);
	discharge(st, s);
	/* A client whose server end never joined was not accelerated; that end will decline it. */
	if (other->sk) {
		handshakes.delete(&pair);
		count_retired(reason);
		record_reason_both(reason, st, peer_open ? other->st : 0);
		report(EVENT_RETIRED, reason, &st->flow, &st->server, st->since, totals);
	} else if (st->provisional) {
		handshakes.delete(&pair);
	}
	/* after the deletion: FIONREAD tells of what comes from here on */
	return note_unread_left(sk, &self) + note_unread_left(other->sk, &peer);
}

/*
 * Whether a program of this end is stuck: it has made a call that does not find what is unread. That
 * is looked at after `reset_at`, since what the program has read before the call does not matter:
 * pairs with harmed().
 */
inline_fn int to_be_reset(__u64 sk, struct sock_state *st)
{
	__u32 at = READ_ONCE(st->reset_at);

	if (!at || (__s32)(now_ms() - at) < 0)
		return 0;
	load_barrier(st);
	return has_redirected(sk) || READ_ONCE(st->guard_cause) == CAUSE_OOB;
}

/* Takes the retirement of a pair one step further. Returns whether it is off the map. */
inline_fn int retire(__u64 sk, struct sock_state *st, struct settings *s, struct walked *w)
{
	struct pair pair = st->self.pair;
	struct other_end other = {};
	struct leaving *l = NULL;

	if (is_stuck_in_splice(sk, st))
		return 0;
	find_other_end(&other, st);
	/* at once, before the program sleeps: as if it had asked for what a guard sees */
	if (may_block(st, s) && !st->guard_cause)
		WRITE_ONCE(st->guard_cause, (__u32)CAUSE_BLOCKING_READER);
	if (!s->stopped) {
		l = leaving_of(sk, st, other.sk, other.st, &pair, s);
		if (l)
			stop_end(st, l, s);
	}
	if (!both_stopped(l, s) && !guarded_and_idle(sk, st, other.sk, other.st))
		return 0;
	/* That end knows this one, so it retires both, and sees what is in flight between them. */
	if (!other.sk && server_met(l))
		return 0;
	if (!quiet(sk, other.sk, st) || !quiet(other.sk, sk, st))
		return 0;
	w->to_wake += take_off(sk, st, &other, s);
	return 1;
}

/* Whether TCP data is still to come that a reader which asks FIONREAD is not told of. */
inline_fn int untold(__u64 sk, const struct sock_state *st)
{
	return fionread_omits_tcp() && kernel_copied_seq(st->peer_sk) != kernel_write_seq(sk);
}

/*
 * Whether a reader may have taken the end of its redirected data for the end of all
 * (carry/redirect.c: force_to_tcp()), or FIONREAD for all that there is (by_tcp_on_member()); notes
 * it for leave/rewake.c if it can read on now. 0 once it has read what there was. The count is read
 * before anything that tells of the borders: pairs with both of these.
 */
inline_fn int at_border(__u64 sk, struct sock_state *st, struct walked *w)
{
	struct end peer = st->peer;
	__u32 borders = READ_ONCE(st->borders);
	__u64 psock;

	if (borders == st->borders_seen)
		return 0;
	psock = psock_of(st->peer_sk);
	if (!psock)
		return 0;
	load_barrier(st);
	if (READ_ONCE(st->mode) != REDIRECT) { /* or it has read everything: carry/begin.h */
		/* a message that was counted may not be in TCP's queue before send() ends */
		if (!idle_sender(sk, st) || !psock_queue_empty(psock))
			return 1;
		if (note_unread_left(st->peer_sk, &peer)) {
			if (!has_read_nothing(st)) {
				st->border_since = now_ms() | 1;
				st->border_copied = kernel_copied_seq(st->peer_sk);
			}
			w->to_wake++;
			return 1;
		}
		if (untold(sk, st))
			return 1;
	}
	st->border_since = 0;
	WRITE_ONCE(st->borders_seen, borders);
	full_barrier(st); /* pairs with by_tcp_on_member() */
	return READ_ONCE(st->borders) != borders;
}

/* Kernel memory that this direction has in its peer's queue, from above. */
inline_fn __u32 held(struct sock_state *st)
{
	__u64 psock = psock_of(st->peer_sk), unread;

	if (!psock || psock_queue_empty(psock))
		return 0;
	unread = unread_bytes(st, psock);
	return unread + unread_messages(st, unread) * MESSAGE_BYTES;
}

/* Whether a connection counts with this end: the server's, or the client's if it is alone. */
inline_fn int counts_connection(struct sock_state *st)
{
	struct end peer = st->peer;
	struct other_end other = {};

	if (st->self.side == SERVER)
		return 1;
	find_other_end(&other, st);
	return !is_state_of_open(other.st, other.sk, &peer);
}

/* Counts an end that stays; `border`: see at_border(). */
inline_fn void count_staying(struct sock_state *st, int border, const struct settings *s,
			     struct walked *w)
{
	w->staying++;
	w->connections += counts_connection(st);
	w->unsettled += border || reader_undecided(st, s) || not_begun(st);
}

/* Writes the line of one that has to leave; 0 if there is no room, and it is visited again. */
inline_fn int write_member(struct output out, __u64 sk, struct sock_state *st)
{
	struct member m = { .self = st->self, .flow = st->flow };

	m.broken = to_be_reset(sk, st);
	return write_line(out, &m, sizeof(m));
}

inline_fn void visit(struct output out, __u64 sk, struct sock_state *st)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);
	struct walked *w = walked.lookup(&zero);
	int border;

	if (!s || !w)
		return;
	if (s->listing) {
		list(out, sk, st, s);
		return;
	}
	/* the kernel visits a bucket again when its lines did not fit in one read() */
	if (st->walk == w->number)
		return;
	full_barrier(st); /* pairs with ask() */
	account_live(sk, st);
	if (retire(sk, st, s, w))
		return;
	border = at_border(sk, st, w);
	if (!(s->stopped || READ_ONCE(st->stop) || st->mode == NATIVE || st->guard_cause))
		count_staying(st, border, s, w);
	else if (!write_member(out, sk, st))
		return;
	if (w->recounts)
		recount(st, s, held(st));
	st->walk = w->number;
}

int sockredir_walk(struct bpf_iter__sockmap *ctx)
{
	struct output out = { .iterates = 1 };
	struct sock *sk = (void *)ctx->sk;
	struct sock_state *st;

	if (!sk)
		return 0;
	out.seq = *(struct seq_file **)ctx->meta;
	st = sockets.sk_storage_get(sk, NULL, 0);
	if (st)
		visit(out, (__u64)sk, st);
	return 0;
}

/*
 * The same where the kernel refuses iterators over maps, as some that are locked down do: the daemon
 * writes keys of the sockhash to `visits`, and has this run for each, under rcu_read_lock() as well
 * (BPF_PROG_TEST_RUN). A program of this kind may look a member up, which takes a reference that
 * would count as a redirect in flight, so it is given back before anything is decided.
 */
int sockredir_visit(void *ctx)
{
	struct output out = { .iterates = 0 };
	struct sock_state *st;
	struct visits *v;
	struct sock *sk;
	struct end end;
	int zero = 0;
	__u32 at;

	v = visits.lookup(&zero);
	if (!v)
		return 0;
	at = v->next;
	if (at >= VISITS)
		return 0;
	v->next = at + 1;
	end = v->keys[at];
	sk = peers.lookup(&end);
	if (!sk)
		return 0;
	st = sockets.sk_storage_get(sk, NULL, 0);
	bpf_sk_release(sk);
	if (st)
		visit(out, (__u64)sk, st);
	return 0;
}

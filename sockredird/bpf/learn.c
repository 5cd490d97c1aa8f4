/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Listeners whose connections are left alone. The map `learned` is the list; the daemon keeps a copy
 * on disk, shows it, and takes from it what it is told to forget.
 *
 * Some are there for good, since a program did what no member of a sockhash can (guard.c). Others
 * are there because acceleration does them no good, for as long as that is so: pairing a connection
 * costs about what PAIRING_COST redirected messages save, and a listener's balance is what its
 * connections saved less what they cost. One that falls to -BALANCE_LIMIT is left alone but for
 * samples, and is given up again when those bring the balance back to 0.
 */

#define PAIRING_COST 4		/* messages */
#define SPILL_COST 64		/* a direction that filled its window: 32 in a row are left alone */
#define EARLY_DATA_COST 16	/* a pair undone: 128 in a row, as with TCP_DEFER_ACCEPT */
#define BALANCE_LIMIT 2048	/* 1024 connections of one request and one answer in a row */
#define SAMPLE_EVERY 64		/* connections */
/* and ten a second: parting a single pair wakes kernel threads, 3 % of what short ones cost */
#define SAMPLE_GAP_NS 100000000LL
#define SAMPLE_AFTER_NS 1000000000LL	/* at the latest, where they are few */
#define UNDER_WAY_NS 2000000000LL	/* a handshake takes no longer, or not to be relied on */

inline_fn struct listener listener_in(const struct flow *flow)
{
	struct listener l = { .netns = flow->netns, .port = flow->server_port };

	return l;
}

/* As the server end sees itself; as the client does where that is not known (yet). */
inline_fn struct listener listener_of(const struct sock_state *st)
{
	struct listener l = listener_in(&st->flow);
	struct end peer = st->peer;
	__u64 peer_st = st->peer_st;
	struct place server = st->server;

	if (st->self.side == CLIENT && is_state_of(peer_st, &peer))
		STATE_FIELD(server, peer_st, server);
	if (server.netns) {
		l.netns = server.netns;
		l.port = server.port;
	}
	return l;
}

/* Where it is noted (not 0) that something is, or was, learned of a listener on such a port. */
inline_fn __u64 *hint_about(__u16 port)
{
	__u32 place = port & (LESSON_HINTS - 1);

	return lesson_hints.lookup(&place);
}

/* The lesson about the listener of a connection; `port` is the listening one. */
inline_fn struct lesson *lesson_at(struct bpf_sock_ops *skops, __u16 port)
{
	__u64 *hint = hint_about(port);
	struct listener l = { .port = port };

	if (!hint || !*hint)
		return NULL;
	l.netns = bpf_get_netns_cookie(skops);
	return learned.lookup(&l);
}

/*
 * Whether it is too early for the next sample. Early data comes of an option of the listener
 * (TCP_DEFER_ACCEPT) more than of what its clients do, and the daemon has to part each of those.
 */
inline_fn int too_early(const struct lesson *lesson, __u64 now)
{
	__s64 since = now - lesson->sampled;

	if (since >= SAMPLE_AFTER_NS)
		return 0;
	return lesson->kind == LESSON_EARLY_DATA || lesson->skipped < SAMPLE_EVERY ||
	       since < SAMPLE_GAP_NS;
}

/* Whether the connection that begins with this SYN is to be left alone. */
inline_fn int left_alone(struct lesson *lesson)
{
	__u64 now;

	if (lesson->kind < LESSON_SPILLS)
		return 1;
	now = recent_time();
	lesson->skipped++;	/* two CPUs may count one connection for two */
	if (too_early(lesson, now))
		return 1;
	lesson->skipped = 0;
	lesson->sampled = now;
	lesson->met[CLIENT] = lesson->met[SERVER] = lesson->samples;
	lesson->samples++;
	return 0;
}

/*
 * Whether an end that is established is of a connection that was left alone. It may be the sample
 * as long as that has not been met; and just after the lesson its SYN may be older than that.
 */
inline_fn int was_left_alone(const struct lesson *lesson, enum side side)
{
	return lesson->samples == lesson->met[side] &&
	       (__s64)(recent_time() - lesson->time) > UNDER_WAY_NS;
}

/* `o` names who did it, on `side`, or is NULL; `server_sk` is the server end's socket, or 0. */
inline_fn void learn(enum lesson_kind kind, struct listener *l, struct flow *flow, __u64 server_sk,
		     enum side side, const struct owner *o)
{
	struct lesson new = { .kind = kind }, *old = learned.lookup(l);
	__u64 *hint = hint_about(l->port);

	/* what is there for good is not replaced */
	if (old && (old->kind < LESSON_SPILLS || kind >= LESSON_SPILLS))
		return;
	new.time = bpf_ktime_get_ns();
	new.sampled = new.time;
	if (server_sk)
		new.cgroup = cgroup_of(server_sk);
	if (o)
		new.owner = *o;
	if (hint)
		*hint = 1;
	learned.update(l, &new);
	report_by(EVENT_LEARNED, kind, flow, NULL, new.time, NULL, side, o);
	ask(REQUEST_LEARNED);
}

/* Puts `saved` messages, or fewer than 0, to a listener's account. Once per connection. */
inline_fn void balance(struct listener *l, struct flow *flow, __u64 server_sk, __s32 saved,
		       enum lesson_kind kind)
{
	struct lesson *lesson;
	__s32 before = 0, after, *account;
	int zero = 0;
	struct settings *s = settings.lookup(&zero);

	if (!s || !s->learn)
		return;
	account = balances.lookup(l);
	if (account) {
		before = *account;
	} else {
		lesson = learned.lookup(l);
		if (lesson && lesson->kind >= LESSON_SPILLS)
			before = -BALANCE_LIMIT;
	}
	/* two CPUs may lose one of two amounts: this is an estimate */
	after = before + saved;
	if (after > BALANCE_LIMIT)
		after = BALANCE_LIMIT;
	if (after <= -BALANCE_LIMIT) {
		after = -BALANCE_LIMIT;
		learn(kind, l, flow, server_sk, SERVER, NULL);
	}
	if (account)
		*account = after;
	else
		balances.update(l, &after);
	if (before >= 0 || after < 0)
		return;
	lesson = learned.lookup(l);
	if (lesson && lesson->kind >= LESSON_SPILLS) {
		learned.delete(l);
		ask(REQUEST_LEARNED);
	}
}

/* The server end of a pair has left ESTABLISHED, the client's still is there. */
inline_fn void settle(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct sock_state *st;
	struct tcp_sock *tp;
	struct listener l;
	struct end peer;
	__u64 messages = 0, peer_st;
	__u8 reason = 0;

	if (!sk)
		return;
	st = sockets.sk_storage_get(sk, NULL, 0);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!st || !tp || st->self.side != SERVER || st->reason || st->refused)
		return;
	peer = st->peer;
	peer_st = st->peer_st;
	if (!is_state_of(peer_st, &peer))
		return;
	/* one that spilled was put to the account when it did; one retired was no fair sample */
	STATE_FIELD(reason, peer_st, reason);
	STATE_FIELD(messages, peer_st, sent_messages);
	messages += st->sent_messages;
	if (reason)
		return;
	if (messages > BALANCE_LIMIT + PAIRING_COST)
		messages = BALANCE_LIMIT + PAIRING_COST;
	l = listener_of(st);
	balance(&l, &st->flow, (__u64)tp, (__s32)messages - PAIRING_COST, LESSON_SHORT);
}

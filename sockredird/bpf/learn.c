/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Listeners whose connections are left alone. The map `learned` is the list; the daemon keeps a copy
 * on disk, shows it, takes from it what it is told to forget, and makes the shortcuts by which most
 * connections do without it.
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
#define LOOK_EVERY 4		/* connections: whether a sample is due, which takes the time of day */
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

inline_fn struct shortcut *shortcut_to(__u16 port)
{
	__u32 place = port & (SHORTCUTS - 1);

	return shortcuts.lookup(&place);
}

inline_fn int leads_to(const struct shortcut *s, const struct listener *l)
{
	return s->state == KNOWN && s->port == l->port && s->netns == l->netns;
}

/*
 * From here on the list is asked about this listener; the daemon may make another shortcut, once it
 * has seen what the list says now.
 */
inline_fn void close_shortcut(const struct listener *l)
{
	struct shortcut *s = shortcut_to(l->port);

	if (s && (s->state == NOTHING_LEARNED || leads_to(s, l)))
		WRITE_ONCE(s->state, LOOK_IT_UP);
}

/* Of a listener, if it was learned. */
inline_fn struct sampling *sampling_of(__u64 netns, __u16 port)
{
	struct shortcut *s = shortcut_to(port);
	struct listener l = { .netns = netns, .port = port };
	struct lesson *lesson;

	if (!s || s->state == NOTHING_LEARNED)
		return NULL;
	if (leads_to(s, &l))
		return &s->sampling;
	lesson = learned.lookup(&l);
	return lesson ? &lesson->sampling : NULL;
}

/*
 * Whether it is too early for the next sample. Early data comes of an option of the listener
 * (TCP_DEFER_ACCEPT) more than of what its clients do, and the daemon has to part each of those.
 */
inline_fn int too_early(const struct sampling *s, __u64 now)
{
	__s64 since = now - s->sampled;

	if (since >= SAMPLE_AFTER_NS)
		return 0;
	return s->kind == LESSON_EARLY_DATA || s->skipped < SAMPLE_EVERY || since < SAMPLE_GAP_NS;
}

/* Whether the connection that begins with this SYN is to be left alone. */
inline_fn int left_alone(struct sampling *s)
{
	__u64 now;

	s->skipped++;	/* two CPUs may count one connection for two */
	if (s->settled && (s->kind < LESSON_SPILLS || s->skipped % LOOK_EVERY))
		return 1;
	now = recent_time();
	s->settled = (__s64)(now - s->time) > UNDER_WAY_NS;
	if (s->kind < LESSON_SPILLS || too_early(s, now))
		return 1;
	s->skipped = 0;
	s->sampled = now;
	s->met[CLIENT] = s->met[SERVER] = s->samples;
	s->samples++;
	return 0;
}

/*
 * Whether an end that is established is of a connection that was left alone. It may be the sample
 * as long as that has not been met; and just after the lesson its SYN may be older than that.
 */
inline_fn int was_left_alone(const struct sampling *s, enum side side)
{
	return s->settled && s->samples == s->met[side];
}

/* `o` names who did it, on `side`, or is NULL; `server_sk` is the server end's socket, or 0. */
inline_fn void learn(enum lesson_kind kind, struct listener *l, struct flow *flow, __u64 server_sk,
		     enum side side, const struct owner *o)
{
	struct lesson new = { .sampling.kind = kind }, *old = learned.lookup(l);

	/* what is there for good is not replaced */
	if (old && (old->sampling.kind < LESSON_SPILLS || kind >= LESSON_SPILLS))
		return;
	new.sampling.time = bpf_ktime_get_ns();
	new.sampling.sampled = new.sampling.time;
	if (server_sk)
		new.cgroup = cgroup_of(server_sk);
	if (o)
		new.owner = *o;
	learned.update(l, &new);
	close_shortcut(l);
	report_by(EVENT_LEARNED, kind, flow, NULL, new.sampling.time, NULL, side, o);
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
		if (lesson && lesson->sampling.kind >= LESSON_SPILLS)
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
	if (lesson && lesson->sampling.kind >= LESSON_SPILLS) {
		learned.delete(l);
		close_shortcut(l);
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

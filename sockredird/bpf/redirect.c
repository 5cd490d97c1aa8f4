/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sk_msg: hands a message to the peer socket's psock queue, or leaves it to TCP. Runs under the
 * sender's socket lock, so one message of a direction is decided at a time.
 */

#define SOCK_RCVBUF_LOCK 2	/* include/net/sock.h */
#define ANSWER_BYTES 1048576	/* after a half-close: more than most have to say */

/*
 * Below these a redirected message costs more than one by TCP, which merges small ones (make bench,
 * "Streams"): 1.3 against 0.7 us at 64 B, 1.2 against 0.8 at 1 KiB, the same at 4 KiB.
 */
#define STREAM_BYTES 3072	/* per message */
#define STREAM_NS 4000		/* CPU time from message to message: with more, there is little to merge */
#define STREAM_MESSAGES 1024	/* after these it is one */

/*
 * The kernel numbers a MSG_ZEROCOPY send once for each piece that tcp_bpf_push() hands to TCP, until
 * the socket is off the map. In one piece it has the one completion that the program waits for.
 */
inline_fn int by_tcp(struct sk_msg_md *msg, const struct sock_state *st)
{
	if (st->refused == RETIRED_ZEROCOPY)
		bpf_msg_pull_data(msg, 0, msg->size, 0);
	return SK_PASS;
}

/* This direction is TCP from here on, and the daemon is asked to take the pair off the map. */
inline_fn int leave(struct sock_state *st, enum counter reason)
{
	st->reason = reason;
	st->mode = NATIVE;
	ask(REQUEST_WALK);
	if (reason == RETIRED_WINDOW || reason == RETIRED_MESSAGES ||
	    reason == RETIRED_SMALL_STREAM) {
		struct listener l = listener_of(st);

		balance(&l, &st->flow, server_of(st), -SPILL_COST, LESSON_SPILLS);
	}
	return SK_PASS;
}

/*
 * The peer is not on the map. Closed, if its FIN is here: TCP answers that as it always does.
 * Otherwise somebody took it off, and this end has to follow.
 */
inline_fn int peer_gone(struct bpf_sock *sk, struct sock_state *st)
{
	if (sk->state != BPF_TCP_ESTABLISHED)
		return SK_PASS;
	return leave(st, RETIRED_PEER_GONE);
}

/*
 * Whether something happened to either end that makes this direction TCP: the peer has called
 * shutdown(2), see half_closed(), or a guard has refused one, see guard.c. Looking costs 100 ns, as
 * much as the rest of the program, so a message looks only if anything happened to any accelerated
 * socket since the last one did.
 */
inline_fn int alerted(struct sock_state *st)
{
	int zero = 0;
	__u64 *count = alerts.lookup(&zero), now;
	enum counter reason;
	__u8 how = 0;

	if (!count)
		return 0;
#ifndef __x86_64__	/* where taking the reference was one */
	full_barrier(st);
#endif
	now = READ_ONCE(*count);
	if (now == st->alerts)
		return 0;
	reason = refusal(st, st->peer_st);
	if (reason) {
		leave(st, reason);
		return 1;
	}
	if (!KERNEL_FIELD(how, st->peer_sk, OFF_sock_sk_shutdown) && !how) {
		st->alerts = now;
		return 0;
	}
	st->reason = RETIRED_HALF_CLOSED;
	st->mode = NATIVE;
	/* with unread data it is on the map still, where FIONREAD leaves out what comes behind that */
	st->budget_bytes = psock_of(st->peer_sk) ? 0 : ANSWER_BYTES;
	if (!st->budget_bytes)
		ask(REQUEST_WALK);
	return 1;
}

/*
 * TCP for good. The end that outlives its peer's half-close is taken off the map by the next walk;
 * one is asked for only if much follows: for each short answer, walks would cost more than they save.
 */
inline_fn int stay(struct sk_msg_md *msg, struct sock_state *st, __u32 size)
{
	if (st->reason != RETIRED_HALF_CLOSED || !st->budget_bytes)
		return by_tcp(msg, st);
	st->budget_bytes -= size < st->budget_bytes ? size : st->budget_bytes;
	if (!st->budget_bytes)
		ask(REQUEST_WALK);
	return by_tcp(msg, st);
}

/* Whether a thread has waited on the client end, in TCP's code, since before it was established. */
inline_fn int early_sleeper(const struct sock_state *st, __u64 sk)
{
	__u64 early = st->early;

	if (st->self.side == SERVER) {
		sk = st->peer_sk;
		STATE_FIELD(early, st->peer_st, early);
	}
	return early && sleeps_on(sk, early);
}

/* The first message of a direction: may it, and all that follow, be redirected (I1)? */
inline_fn int first_message(struct bpf_sock *sk, struct sock_state *st)
{
	struct tcp_sock *tp = bpf_skc_to_tcp_sock(sk);
	__u32 isn_1 = st->self.side == CLIENT ? st->self.pair.client_seq : st->self.pair.server_seq;
	__u32 write_seq = 0;

	if (!tp || KERNEL_FIELD(write_seq, (__u64)tp, OFF_tcp_sock_write_seq) || write_seq != isn_1)
		return 0;
	if (!st->peer_sk) {
		struct pair pair = st->self.pair;
		struct handshake *hs = handshakes.lookup(&pair);

		if (!hs || !hs->server_sk)
			return 0;
		st->peer_sk = hs->server_sk;
		st->peer_st = hs->server_st;
		handshakes.delete(&pair);
	}
	if (early_sleeper(st, (__u64)tp))
		return 0;
	st->early = 0;
	st->mode = REDIRECT;
	return 1;
}

/* Redirected bytes the peer has not read. Exact where the kernel counts them, else from above. */
inline_fn __u64 unread_bytes(struct sock_state *st, __u64 psock)
{
#ifdef OFF_sk_psock_msg_tot_len
	__u32 queued = 0;

	KERNEL_FIELD(queued, psock, OFF_sk_psock_msg_tot_len);
	return queued;
#else
	if (psock_queue_empty(psock))
		st->drained_bytes = st->sent_bytes;
	return st->sent_bytes - st->drained_bytes;
#endif
}

/* The window, or less where the receiving program set SO_RCVBUF (kept doubled, socket(7)). */
inline_fn __u32 window(__u64 peer_sk, const struct settings *s)
{
	__u32 rcvbuf = 0;

	if (kernel_bits(peer_sk, OFF_sock_sk_userlocks, MASK_sock_sk_userlocks) &
	    (SOCK_RCVBUF_LOCK << SHIFT_sock_sk_userlocks)) {
		KERNEL_FIELD(rcvbuf, peer_sk, OFF_sock_sk_rcvbuf);
		if (rcvbuf / 2 < s->window_bytes)
			return rcvbuf / 2;
	}
	return s->window_bytes;
}

/*
 * Whether an sk_skb program, of a sockmap of somebody else, takes what comes in from TCP
 * (sk_psock_start_verdict()); redirected messages would pass it by.
 */
inline_fn int has_sk_skb(__u64 psock)
{
	__u64 saved = 0;

	return KERNEL_FIELD(saved, psock, OFF_sk_psock_saved_data_ready) || saved;
}

/*
 * Whether this direction is a stream of small messages: one task sends them as fast as it can,
 * without ever waiting for anything, to a reader that keeps up and does not answer. By CPU time, as
 * the scheduler takes the CPU from fast senders, too. Called once for MESSAGES_PER_SAMPLE messages.
 */
inline_fn int small_stream(struct sock_state *st, __u64 unread)
{
	struct stream now = { .task = bpf_get_current_task(), .bytes = st->sent_bytes };
	__u64 read = st->sent_bytes - unread;

	now.messages = st->sent_messages;
	KERNEL_FIELD(now.answers, st->peer_st, __builtin_offsetof(struct sock_state, sent_messages));
	KERNEL_FIELD(now.cpu_ns, now.task, OFF_task_struct_sum_exec_runtime);
	KERNEL_FIELD(now.waits, now.task, OFF_task_struct_nvcsw);
	if (now.task != st->stream.task || now.waits != st->stream.waits ||
	    (now.answers - st->stream.answers) * 16 > now.messages - st->stream.messages) {
		st->stream = now;
		return 0;
	}
	now.messages -= st->stream.messages;
	return now.messages >= STREAM_MESSAGES &&
	       now.cpu_ns - st->stream.cpu_ns < now.messages * STREAM_NS &&
	       now.bytes - st->stream.bytes < now.messages * STREAM_BYTES &&
	       read >= st->checkpoint[(st->checkpoints - 1) & 15];
}

/*
 * Looks at the peer's queue and grants the next budget; 0, or why there is none (I3). Messages are
 * bounded as well as bytes: a 1-byte message costs about 1 KiB of kernel memory. If the byte
 * position of 16 x MESSAGES_PER_SAMPLE messages ago is not read yet, that many are unread.
 */
inline_fn enum counter refill(struct sock_state *st, const struct settings *s)
{
	__u64 psock = psock_of(st->peer_sk);
	__u64 unread;
	__u32 limit;

	if (!psock)
		return RETIRED_PEER_GONE;
	if (has_sk_skb(psock))
		return RETIRED_OTHER_SOCKMAP;
	unread = unread_bytes(st, psock);
	limit = window(st->peer_sk, s);
	if (unread >= limit)
		return RETIRED_WINDOW;
	if (!st->budget_messages) {
		__u32 slot = st->checkpoints & 15;

		if (st->checkpoints >= 16 && st->checkpoint[slot] > st->sent_bytes - unread)
			return RETIRED_MESSAGES;
		if (small_stream(st, unread))
			return RETIRED_SMALL_STREAM;
		st->checkpoint[slot] = st->sent_bytes;
		st->checkpoints++;
		st->budget_messages = MESSAGES_PER_SAMPLE;
	}
	limit -= unread;
	st->budget_bytes = limit < BYTES_PER_SAMPLE ? limit : BYTES_PER_SAMPLE;
	return 0;
}

/*
 * What a message pays for, in ns on an AMD EPYC of 2025 (make bench, "The programs"): the state of
 * the socket 30, which says where to; the redirect itself 70, which hashes the peer's key; the rest
 * together 5. Array maps are looked up without a call, and the per-CPU counters bounce between no
 * caches. Reading any kernel memory by address is 50, so that is for every 256th message.
 */
int sockredir_msg(struct sk_msg_md *msg)
{
	struct bpf_sock *sk = msg->sk;
	__u32 size = msg->size;
	struct sock_state *st;
	struct settings *s;
	struct counters *c;
	struct end peer;
	int zero = 0;
	int verdict;

	if (!sk)
		return SK_PASS;
	st = sockets.sk_storage_get(sk, NULL, 0);
	s = settings.lookup(&zero);
	if (!st || !s)
		return SK_PASS;
	if (st->mode == NATIVE)
		return stay(msg, st, size);
	/* after shutdown(SHUT_WR) TCP refuses to send, with EPIPE; a redirect would deliver */
	if (sk->state != BPF_TCP_ESTABLISHED && sk->state != BPF_TCP_CLOSE_WAIT)
		return SK_PASS;
	if (s->stopped || READ_ONCE(st->stop)) {
		st->mode = NATIVE;
		return SK_PASS;
	}
	if (st->mode == UNDECIDED && !first_message(sk, st))
		return leave(st, RETIRED_LATE_PAIRING);
	if (alerted(st))
		return by_tcp(msg, st);
	if (!st->budget_bytes || !st->budget_messages) {
		enum counter reason = refill(st, s);

		if (reason == RETIRED_PEER_GONE)
			return peer_gone(sk, st);
		if (reason)
			return leave(st, reason);
	}

	peer = st->peer;
	verdict = peers.msg_redirect_hash(msg, &peer, BPF_F_INGRESS);
	/* SK_DROP here means the peer left the map; dropping would be EACCES to the program (I7). */
	if (verdict != SK_PASS)
		return peer_gone(sk, st);

	st->budget_bytes -= size < st->budget_bytes ? size : st->budget_bytes;
	st->budget_messages--;
	st->sent_bytes += size;
	st->sent_messages++;
	c = counters.lookup(&zero);
	if (c) {
		__sync_fetch_and_add(&c->value[REDIRECTED_MESSAGES], 1);
		__sync_fetch_and_add(&c->value[REDIRECTED_BYTES], size);
	}
	return SK_PASS;
}

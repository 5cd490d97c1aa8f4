/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sock_ops: pairs the two ends of a same-host connection as it is established.
 *
 * A listener in scope answers a SYN      -> leaves word in `answered` (scope.h)
 * the client end is established          -> goes on the sockhash, leaves a `handshake`
 * the server end finds that handshake    -> goes on the sockhash: the pair is complete
 *
 * Whatever does not fit leaves both ends plain TCP sockets. Always returns 1 and never writes
 * `reply`: returning 0 would turn the callbacks of other sock_ops programs into errors.
 */

#define TCPHDR_SYN 0x02
#define E2BIG 7		/* errno.h, which the shim has not */
#define ENOMEM 12
#define EBUSY 16
#define EEXIST 17

inline_fn void decline(enum counter reason, struct flow *flow)
{
	count(reason, 1);
	judge(reason, flow);
	report(EVENT_DECLINED, reason, flow, NULL, NOW, NULL);
}

/* A peer that is out of scope; on another host, most probably, of which there may be many. */
inline_fn void decline_outside(struct flow *flow, enum reach reach)
{
	if (reach == NEAR)
		return decline(DECLINED_PEER_OUTSIDE, flow);
	count(DECLINED_PEER_OUTSIDE, 1);
	report(EVENT_DECLINED, DECLINED_PEER_OUTSIDE, flow, NULL, NOW, NULL);
}

/* By the server end, which knows both views of the connection. */
inline_fn void decline_both(enum counter reason, struct flow *of_client, struct flow *of_server)
{
	struct place here;

	read_place(&here, of_server);
	count(reason, 1);
	judge(reason, of_client);
	if (!same_flow(of_client, of_server))
		judge(reason, of_server);
	report(EVENT_DECLINED, reason, of_client, &here, NOW, NULL);
}

/* 0, or why a socket of this kind never goes on a sockhash (I6). */
inline_fn enum counter unsuitable(struct tcp_sock *tp)
{
	__u64 flags = OWN_FIELD(__u64, tp, OFF_sock_skc_flags);

#ifdef OFF_tcp_sock_is_mptcp
	/* before the ULP, which an MPTCP subflow has as well */
	if (OWN_FIELD(__u8, tp, OFF_tcp_sock_is_mptcp) & MASK_tcp_sock_is_mptcp)
		return DECLINED_MPTCP;
#endif
	if (OWN_FIELD(__u64, tp, OFF_inet_connection_sock_icsk_ulp_ops))
		return DECLINED_ULP;
	if ((flags >> BIT_SOCK_ZEROCOPY) & 1)
		return DECLINED_ZEROCOPY;
	if ((flags >> BIT_SOCK_URGINLINE) & 1)
		return DECLINED_OOBINLINE;
	/* set before, or on the listener, from which it is inherited */
	if (OWN_FIELD(__s32, tp, OFF_sock_sk_rcvlowat) > 1)
		return DECLINED_RCVLOWAT;
	if ((flags >> BIT_SOCK_RCVTSTAMP) & 1 || OWN_FIELD(__u16, tp, OFF_sock_sk_tsflags) ||
	    OWN_FIELD(__s32, tp, OFF_sock_sk_peek_off) >= 0 ||
	    OWN_FIELD(__u8, tp, OFF_tcp_sock_recvmsg_inq) & MASK_tcp_sock_recvmsg_inq)
		return DECLINED_OPTION;
	if (OWN_FIELD(__u8, tp, OFF_sock_sk_kern_sock) & MASK_sock_sk_kern_sock)
		return DECLINED_KERNEL_SOCKET;
	if (OWN_FIELD(__u8, tp, OFF_tcp_sock_repair) & MASK_tcp_sock_repair)
		return DECLINED_REPAIR;
#ifdef OFF_tcp_sock_syn_smc
	if (OWN_FIELD(__u8, tp, OFF_tcp_sock_syn_smc) & MASK_tcp_sock_syn_smc)
		return DECLINED_ULP;
#endif
	return 0;
}

/* Why sock_hash_update() failed: sock_map_link() and sock_hash_update_common(). */
inline_fn enum counter refused(int err)
{
	switch (err) {
	case -E2BIG:
		return DECLINED_MAP_FULL;
	case -EEXIST:
		return DECLINED_MISMATCH;
	case -EBUSY:		/* its psock has an sk_msg program, and takes only one */
		return DECLINED_OTHER_SOCKMAP;
	case -ENOMEM:
		return DECLINED_NO_MEMORY;
	}
	return DECLINED_ULP;	/* EINVAL: sk_psock_init() takes no socket with a ULP */
}

/* The reason to decline that belongs to one to retire. */
inline_fn enum counter declined_for(__u32 refused)
{
	switch (refused) {
	case RETIRED_ZEROCOPY:
		return DECLINED_ZEROCOPY;
	case RETIRED_OOBINLINE:
		return DECLINED_OOBINLINE;
	case RETIRED_REPAIR:
		return DECLINED_REPAIR;
	case RETIRED_OPTION:
		return DECLINED_OPTION;
	case RETIRED_ULP:
		return DECLINED_ULP;
	}
	return DECLINED_RCVLOWAT;
}

/* 0, or what a program asked for between connect() and now, see guard.c. */
inline_fn enum counter refused_while_connecting(struct bpf_sock *sk)
{
	struct sock_state *st = sockets.sk_storage_get(sk, NULL, 0);

	return st && st->refused ? declined_for(st->refused) : 0;
}

/*
 * Puts one end on the sockhash; 0, or why it could not.
 *
 * A client may have been waited for since before: by connect(), which is about to return, or by a
 * thread in recv() or send(). That one stays in TCP's code (tcp_recvmsg(), tcp_sendmsg_locked()),
 * where it would not see redirected data, or overtake it. Which it is shows when the first message
 * is sent: see first_message().
 */
inline_fn enum counter join(struct bpf_sock_ops *skops, struct bpf_sock *sk, struct tcp_sock *tp,
			    enum side side, const struct flow *flow, const struct pair *pair,
			    struct handshake *hs)
{
	struct sock_state *st = sockets.sk_storage_get(sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	struct end self = { .pair = *pair, .side = side };
	int err, flags;

	if (!st)
		return DECLINED_NO_MEMORY;
	__builtin_memset(st, 0, sizeof(*st));
	st->self = self;
	st->peer.pair = *pair;
	st->peer.side = !side;
	if (side == SERVER) {
		st->peer_sk = hs->client_sk;
		st->peer_st = hs->client_st;
		hs->server_st = (__u64)st;
	} else {
		st->early = sleeper_on((__u64)tp);
		hs->client_st = (__u64)st;
	}
	st->since = bpf_ktime_get_ns();
	st->flow = hs->flow;	/* the client's view on both ends */
	if (side == SERVER)
		read_place(&st->server, flow);
	st->provisional = side == CLIENT && !hs->answered;
	/* NOEXIST: a collision of sequence numbers, or a forged one, must not displace anybody */
	err = peers.sock_hash_update(skops, &self, BPF_NOEXIST);
	if (err) {
		sockets.sk_storage_delete(sk);
		return refused(err);
	}
	flags = skops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG;
	if (st->provisional)
		flags |= BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG;
	bpf_sock_ops_cb_flags_set(skops, flags);
	return 0;
}

/*
 * The first segment that a provisional client end receives. Its server end was established before
 * it could send one: if that has not joined by now, it is not in scope, and never will.
 */
inline_fn void segment_received(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct sock_state *st;
	struct handshake *hs;
	struct flow flow;
	struct end self;

	bpf_sock_ops_cb_flags_set(skops, skops->bpf_sock_ops_cb_flags &
					 ~BPF_SOCK_OPS_PARSE_ALL_HDR_OPT_CB_FLAG);
	if (!sk)
		return;
	st = sockets.sk_storage_get(sk, NULL, 0);
	if (!st || !st->provisional || st->mode != UNDECIDED || READ_ONCE(st->stop))
		return;
	self = st->self;
	flow = st->flow;
	hs = handshakes.lookup(&self.pair);
	if (hs && hs->server_sk)
		return;
	/* nothing was ever redirected to it */
	peers.delete(&self);
	handshakes.delete(&self.pair);
	sockets.sk_storage_delete(sk);
	decline(DECLINED_PEER_OUTSIDE, &flow);
}

/*
 * A socket that was connected before. connect(AF_UNSPEC) leaves it on the sockhash (only close()
 * takes it off), where its old peer's messages would reach the new one, should ended() have
 * missed it.
 */
inline_fn void forget(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct sock_state *st;
	struct end self;

	if (!sk)
		return;
	st = sockets.sk_storage_get(sk, NULL, 0);
	if (!st)
		return;
	self = st->self;
	peers.delete(&self);
	sockets.sk_storage_delete(sk);
}

/* Whether connect(AF_UNSPEC) has ended a connection, of which there is no error, and not two FINs. */
inline_fn int disconnected(struct tcp_sock *tp, __u32 old_state)
{
	if (old_state == BPF_TCP_ESTABLISHED || old_state == BPF_TCP_CLOSE_WAIT)
		return 1;
	if (old_state != BPF_TCP_FIN_WAIT1 && old_state != BPF_TCP_FIN_WAIT2)
		return 0;
	/* set by tcp_fin() */
	return !((OWN_FIELD(__u64, tp, OFF_sock_skc_flags) >> BIT_SOCK_DONE) & 1);
}

/*
 * The connection has ended, and the socket may still be on the sockhash. A reset, or a time-out, is
 * told by an error that is set before the state (tcp_reset()). What is unread then can still be read;
 * without any the entry goes, as tcp_bpf_sendmsg() reports the error, but does not clear it.
 *
 * tcp_disconnect() throws away what is unread, but does not know of the psock's queue, which goes with
 * the entry.
 */
inline_fn void ended(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct sock_state *st;
	struct tcp_sock *tp;
	struct end self;
	__u64 psock;
	int err = 0;

	if (!sk)
		return;
	st = sockets.sk_storage_get(sk, NULL, 0);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!st || !tp || KERNEL_FIELD(err, (__u64)tp, OFF_sock_sk_err))
		return;
	psock = psock_of((__u64)tp);
	if (err ? !psock || !psock_queue_empty(psock) || !idle_sender(st->peer_sk) :
		  !disconnected(tp, skops->args[0]))
		return;
	self = st->self;
	peers.delete(&self);
}

/*
 * shutdown(SHUT_WR) or close(). A reader that then waits on an accelerated socket is woken by the
 * acknowledgement of its FIN, finds nothing, and its blocking recv() returns EAGAIN: unlike TCP's,
 * the sockhash's recv() does not go back to wait (tcp_bpf_recvmsg()). So this end leaves the map
 * now, before anybody can wait, if nothing is queued or on its way to it.
 *
 * The peer's send() takes a reference to its psock, then its sk_msg program looks whether anybody
 * was shut down meanwhile, and at our sk_shutdown if so; here sk_shutdown was set (inet_shutdown())
 * and announced, then we look at that reference. With a full barrier between each two, one of them
 * sees the other.
 */
inline_fn void half_closed(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct sock_state *st;
	struct tcp_sock *tp;
	__u64 psock, peer_sk;
	struct end self;

	if (!sk)
		return;
	st = sockets.sk_storage_get(sk, NULL, 0);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!st || !tp)
		return;
	psock = psock_of((__u64)tp);
	if (!psock)
		return;		/* closed: the kernel took it off before */
	peer_sk = st->peer_sk;
	self = st->self;
	if (!peer_sk) {
		struct pair pair = st->self.pair;
		struct handshake *hs = handshakes.lookup(&pair);

		peer_sk = hs ? hs->server_sk : 0;
	}
	alert(st);
	if (!idle_sender(peer_sk) || !psock_queue_empty(psock))
		return;
	peers.delete(&self);
}

/* The accepting side speaks first: raised for each SYN a listener in scope answers. */
inline_fn void syn_answered(struct bpf_sock_ops *skops, __u64 netns)
{
	enum reach reach;
	struct flow flow;

	if (!read_flow(skops, netns, SERVER, &flow))
		return;
	reach = reach_of(&flow, SERVER);
	if (reach != OUT_OF_SCOPE)
		leave_word(&flow, reach);
}

/*
 * No listener in scope has answered this client's address. One may have answered another that SNAT
 * gave it: then the server end is in scope, and finds out by what is left here, too late.
 */
inline_fn void unanswered(const struct pair *pair, struct flow *flow, enum reach reach)
{
	if (translation_in_scope()) {
		struct unproven *u = unproven_for(pair);

		if (u) {
			u->pair = *pair;
			u->flow = *flow;
		}
	}
	if (port_in_scope(flow->server_port))
		decline_outside(flow, reach);
}

/* Its SYN was left alone. Counted here and not at the server end. */
inline_fn void decline_learned(struct flow *flow)
{
	if (!port_in_scope(flow->server_port))
		return;
	count(DECLINED_LEARNED, 1);
	report(EVENT_DECLINED, DECLINED_LEARNED, flow, NULL, NOW, NULL);
}

/*
 * What is done for each connection to a listener that was learned, and all that is done for most of
 * them. `sampling` is the listener's, or NULL. In one place, so that it is in the processor's cache
 * from the first of the three on.
 */
inline_fn int stays_on_tcp(struct bpf_sock_ops *skops, __u64 netns, struct sampling *sampling)
{
	struct flow flow;

	if (!sampling)
		return 0;
	switch (skops->op) {
	case BPF_SOCK_OPS_RWND_INIT:
		return left_alone(sampling);
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		return was_left_alone(sampling, SERVER);
	}
	/* in another netns that port may be another listener's, of which take_words() knows */
	if (translation_in_scope() || !was_left_alone(sampling, CLIENT))
		return 0;
	if (read_flow(skops, netns, CLIENT, &flow) && reach_of(&flow, CLIENT) != OUT_OF_SCOPE)
		decline_learned(&flow);
	return 1;
}

inline_fn void client_established(struct bpf_sock_ops *skops, __u64 netns,
				      struct sampling *sampling)
{
	struct handshake hs = {};
	struct pair pair = {};
	struct bpf_sock *sk = skops->sk;
	struct tcp_sock *tp;
	enum counter reason;
	enum reach reach;
	__u32 answers;

	if (!sk || !read_flow(skops, netns, CLIENT, &hs.flow))
		return;
	reach = reach_of(&hs.flow, CLIENT);
	if (reach == OUT_OF_SCOPE)
		return;
	pair.client_seq = skops->snd_nxt;
	pair.server_seq = skops->rcv_nxt;
	answers = take_words(&hs.flow, reach);
	if (sampling && answers)
		sampling->met[CLIENT] = sampling->samples;
	if (!answers && sampling)
		return decline_learned(&hs.flow);
	if (!answers)
		return unanswered(&pair, &hs.flow, reach);
	if (on_trial(sk))
		return;

	/*
	 * TCP Fast Open. The SYN's data was taken: the server end was established, and declined,
	 * before us. It was not: it still waits in the write queue (checked below).
	 */
	if (skops->bytes_acked > 1)
		return;

	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp || is_excluded((__u64)tp))
		return;
	hs.answered = answers & FLOW_ANSWERED;
	reason = unsuitable(tp);
	if (!reason)
		reason = refused_while_connecting(sk);
	if (!reason && OWN_FIELD(__u32, tp, OFF_tcp_sock_write_seq) != pair.client_seq)
		reason = DECLINED_EARLY_DATA;
	if (!reason)
		reason = join(skops, sk, tp, CLIENT, &hs.flow, &pair, &hs);
	if (!reason)
		hs.client_sk = (__u64)tp;
	/*
	 * A declined client leaves word too (client_sk 0), so that the pair is counted once. Not in
	 * the place of another's: sequence numbers can be chosen (TCP_REPAIR, raw sockets).
	 */
	if (handshakes.insert(&pair, &hs) && !reason) {
		struct end self = { .pair = pair, .side = CLIENT };

		peers.delete(&self);
		sockets.sk_storage_delete(sk);
		reason = DECLINED_MISMATCH;
	}
	if (reason)
		decline(reason, &hs.flow);
	else
		report(EVENT_ACTIVE, 0, &hs.flow, NULL, NOW, NULL);
}

/* Whether the segment that completed the handshake carries data (TCP_DEFER_ACCEPT, Fast Open). */
inline_fn int segment_has_data(struct bpf_sock_ops *skops)
{
	__u8 *tcp = skops->skb_data;
	void *end = skops->skb_data_end;

	if (skops->skb_tcp_flags & TCPHDR_SYN)
		return 1;
	if ((void *)(tcp + 20) > end)
		return 1;
	return skops->skb_len > (tcp[12] >> 4) * 4;	/* data offset, RFC 9293 3.1 */
}

/* No client end in scope has left a handshake. */
inline_fn void client_outside(const struct pair *pair, struct flow *flow, enum reach reach,
			      int learned_listener)
{
	struct flow of_client = {};
	struct unproven *u;

	if (learned_listener)
		return;		/* the client end has counted it */
	u = translation_in_scope() ? unproven_for(pair) : NULL;
	if (!u || u->pair.client_seq != pair->client_seq || u->pair.server_seq != pair->server_seq)
		return decline_outside(flow, reach);
	of_client = u->flow;
	/* the same address: its SYN was answered with a cookie, or before acceleration was enabled */
	decline_both(same_client(&of_client, flow) ? DECLINED_PEER_OUTSIDE : DECLINED_UNDECIDABLE,
		     &of_client, flow);
}

inline_fn void server_established(struct bpf_sock_ops *skops, __u64 netns,
				      struct sampling *sampling)
{
	struct flow flow;
	struct pair pair = {};
	struct end client = {};
	struct bpf_sock *sk = skops->sk;
	struct flow client_flow;
	struct place here;
	struct handshake *hs;
	struct tcp_sock *tp;
	enum counter reason;
	__u32 write_seq = 0;
	enum reach reach;
	__u32 refused = 0;

	if (!sk || !read_flow(skops, netns, SERVER, &flow) || on_trial(sk))
		return;
	reach = reach_of(&flow, SERVER);
	if (reach == OUT_OF_SCOPE)
		return;
	if (skops->skb_tcp_flags & TCPHDR_SYN)
		return decline(DECLINED_EARLY_DATA, &flow);
	pair.client_seq = skops->rcv_nxt;
	pair.server_seq = skops->snd_nxt;
	/* most that are out of scope are told by the first, at a fraction of what the second takes */
	hs = untaken(&flow, reach) ? NULL : handshakes.lookup(&pair);
	if (!hs)
		return client_outside(&pair, &flow, reach, sampling != 0);
	if (sampling)
		sampling->met[SERVER] = sampling->samples;
	if (hs->server_sk || !(hs->answered ? same_flow(&flow, &hs->flow) :
					      same_client(&flow, &hs->flow)))
		return decline(DECLINED_MISMATCH, &flow);
	if (!hs->client_sk) {
		handshakes.delete(&pair);
		return;
	}

	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	reason = is_excluded((__u64)tp) ? DECLINED_PEER_OUTSIDE : unsuitable(tp);
	/* The client's first message may have overtaken its ACK (RPS): it went through TCP. */
	if (!reason && (segment_has_data(skops) ||
			KERNEL_FIELD(write_seq, hs->client_sk, OFF_tcp_sock_write_seq) ||
			write_seq != pair.client_seq))
		reason = DECLINED_EARLY_DATA;
	if (!reason)
		STATE_FIELD(refused, hs->client_st, refused);
	if (refused)
		reason = declined_for(refused);
	if (!reason)
		reason = join(skops, sk, tp, SERVER, &flow, &pair, hs);
	if (!reason) {
		/* The client's first message finds the pair complete through this. */
		WRITE_ONCE(hs->server_sk, (__u64)tp);
		count(ACCELERATED_CONNECTIONS, 1);
		read_place(&here, &flow);
		report(EVENT_ACCELERATED, 0, &hs->flow, &here, NOW, NULL);
		return;
	}
	/* Nothing was ever redirected to the client end, so taking it off loses nothing (I5). */
	client.pair = pair;
	client.side = CLIENT;
	peers.delete(&client);
	client_flow = hs->flow;
	handshakes.delete(&pair);
	if (reason == DECLINED_EARLY_DATA) {
		struct listener l = listener_in(&flow);

		balance(&l, &client_flow, (__u64)tp, -EARLY_DATA_COST, LESSON_EARLY_DATA);
	}
	decline_both(reason, &client_flow, &flow);
}

/* A client end is closed that never sent anything: see first_message(). */
inline_fn void forget_handshake(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct handshake *hs;
	struct sock_state *st;
	struct pair pair;

	if (!sk)
		return;
	st = sockets.sk_storage_get(sk, NULL, 0);
	if (!st || st->peer_sk)
		return;
	pair = st->self.pair;
	hs = handshakes.lookup(&pair);
	/* a server end that is about to join has its address: leave it that */
	if (hs && hs->server_sk)
		handshakes.delete(&pair);
}

/* Called in the context of connect(). */
inline_fn void connecting(struct bpf_sock_ops *skops)
{
	struct flow flow;

	if (tracing() && read_flow(skops, bpf_get_netns_cookie(skops), CLIENT, &flow) &&
	    reach_of(&flow, CLIENT) != OUT_OF_SCOPE)
		note_caller(&flow);
}

int sockredir_pair(struct bpf_sock_ops *skops)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);
	struct sampling *sampling;
	__u64 netns;
	__u16 port;

	switch (skops->op) {
	case BPF_SOCK_OPS_TCP_CONNECT_CB:
		forget(skops);
		connecting(skops);
		return 1;
	case BPF_SOCK_OPS_TCP_LISTEN_CB:
		forget(skops);
		note_listener(bpf_get_netns_cookie(skops), local_port(skops));
		return 1;
	case BPF_SOCK_OPS_STATE_CB:
		if (skops->args[0] == BPF_TCP_ESTABLISHED)
			settle(skops);
		if (skops->args[1] == BPF_TCP_FIN_WAIT1)
			half_closed(skops);
		if (skops->args[1] == BPF_TCP_CLOSE) {
			forget_handshake(skops);
			if (tracing())
				closed(skops);
			ended(skops);
		}
		return 1;
	case BPF_SOCK_OPS_PARSE_HDR_OPT_CB:
		segment_received(skops);
		return 1;
	}
	if (!s || s->stopped)
		return 1;
	switch (skops->op) {
	case BPF_SOCK_OPS_RWND_INIT:
		if (skops->is_fullsock)
			return 1;	/* a client's, in connect() */
		port = local_port(skops);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		port = remote_port(skops);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		port = local_port(skops);
		break;
	default:
		return 1;
	}
	/* for a client, through DNAT, the listening port is another one */
	if (!port_in_scope(port) &&
	    !(skops->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB && translation_in_scope()))
		return 1;
	netns = bpf_get_netns_cookie(skops);
	sampling = sampling_of(netns, port);
	if (stays_on_tcp(skops, netns, sampling))
		return 1;
	switch (skops->op) {
	case BPF_SOCK_OPS_RWND_INIT:
		syn_answered(skops, netns);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		client_established(skops, netns, sampling);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		server_established(skops, netns, sampling);
		break;
	}
	return 1;
}

/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * sock_ops: pairs the two ends of a same-host connection as it is established.
 *
 * A listener in scope answers a SYN      -> the flow is noted in `answered`
 * the client end is established          -> goes on the sockhash, leaves a `handshake`
 * the server end finds that handshake    -> goes on the sockhash: the pair is complete
 *
 * Whatever does not fit leaves both ends plain TCP sockets. Always returns 1 and never writes
 * `reply`: returning 0 would turn the callbacks of other sock_ops programs into errors.
 */

#define AF_INET 2
#define AF_INET6 10
#define TCPHDR_SYN 0x02
#define E2BIG 7		/* errno.h, which the shim has not */
#define ENOMEM 12
#define EBUSY 16
#define EEXIST 17
#define ANSWER_VALID_NS 60000000000ULL	/* SYN-ACK retransmissions included */

inline_fn __u16 local_port(struct bpf_sock_ops *skops)
{
	return skops->local_port;
}

inline_fn __u16 remote_port(struct bpf_sock_ops *skops)
{
	/* volatile: the compiler would narrow the load, which the verifier refuses here */
	volatile __u32 port = skops->remote_port;

	return bpf_ntohl(port);
}

inline_fn int is_loopback4(__u32 ip)
{
	return (ip & bpf_htonl(0xff000000)) == bpf_htonl(0x7f000000);
}

inline_fn void map_v4(__u32 *ip6, __u32 ip4)
{
	ip6[0] = 0;
	ip6[1] = 0;
	ip6[2] = bpf_htonl(0x0000ffff);
	ip6[3] = ip4;
}

inline_fn int is_loopback(const __u32 *ip6)
{
	if (ip6[0] || ip6[1])
		return 0;
	if (ip6[2] == bpf_htonl(0x0000ffff))
		return is_loopback4(ip6[3]);
	return !ip6[2] && ip6[3] == bpf_htonl(1);
}

/*
 * The connection as the client sees it; 0 if an address is not loopback or the port not in scope.
 * `side` is the side of this socket.
 */
inline_fn int flow_in_scope(struct bpf_sock_ops *skops, enum side side, struct flow *flow)
{
	__u32 local[4], remote[4];
	struct ports *p;
	int zero = 0;

	if (skops->family == AF_INET) {
		map_v4(local, skops->local_ip4);
		map_v4(remote, skops->remote_ip4);
	} else if (skops->family == AF_INET6) {
		local[0] = skops->local_ip6[0];
		local[1] = skops->local_ip6[1];
		local[2] = skops->local_ip6[2];
		local[3] = skops->local_ip6[3];
		remote[0] = skops->remote_ip6[0];
		remote[1] = skops->remote_ip6[1];
		remote[2] = skops->remote_ip6[2];
		remote[3] = skops->remote_ip6[3];
	} else {
		return 0;
	}
	if (!is_loopback(local) || !is_loopback(remote))
		return 0;

	__builtin_memset(flow, 0, sizeof(*flow));
	if (side == CLIENT) {
		__builtin_memcpy(flow->client_ip, local, 16);
		__builtin_memcpy(flow->server_ip, remote, 16);
		flow->client_port = local_port(skops);
		flow->server_port = remote_port(skops);
	} else {
		__builtin_memcpy(flow->client_ip, remote, 16);
		__builtin_memcpy(flow->server_ip, local, 16);
		flow->client_port = remote_port(skops);
		flow->server_port = local_port(skops);
	}
	flow->netns = bpf_get_netns_cookie(skops);

	p = ports.lookup(&zero);
	return p && (p->bits[flow->server_port >> 3] >> (flow->server_port & 7)) & 1;
}

inline_fn void decline(enum counter reason, struct flow *flow)
{
	count(reason, 1);
	judge(reason, flow);
	report(EVENT_DECLINED, reason, flow, bpf_ktime_get_ns(), NULL);
}

/* 0, or why a socket of this kind never goes on a sockhash (I6). */
inline_fn enum counter unsuitable(__u64 sk)
{
	__u64 ulp = 0, flags = 0;

#ifdef OFF_tcp_sock_is_mptcp
	/* before the ULP, which an MPTCP subflow has as well */
	if (kernel_bits(sk, OFF_tcp_sock_is_mptcp, MASK_tcp_sock_is_mptcp))
		return DECLINED_MPTCP;
#endif
	if (KERNEL_FIELD(ulp, sk, OFF_inet_connection_sock_icsk_ulp_ops) || ulp)
		return DECLINED_ULP;
	if (KERNEL_FIELD(flags, sk, OFF_sock_skc_flags) || (flags >> BIT_SOCK_ZEROCOPY) & 1)
		return DECLINED_ZEROCOPY;
	if (kernel_bits(sk, OFF_sock_sk_kern_sock, MASK_sock_sk_kern_sock))
		return DECLINED_KERNEL_SOCKET;
	if (kernel_bits(sk, OFF_tcp_sock_repair, MASK_tcp_sock_repair))
		return DECLINED_REPAIR;
#ifdef OFF_tcp_sock_syn_smc
	if (kernel_bits(sk, OFF_tcp_sock_syn_smc, MASK_tcp_sock_syn_smc))
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

/* Puts one end on the sockhash; 0, or why it could not. */
inline_fn enum counter join(struct bpf_sock_ops *skops, struct bpf_sock *sk, enum side side,
			    const struct flow *flow, const struct pair *pair, struct handshake *hs)
{
	struct sock_state *st = sockets.sk_storage_get(sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	struct end self = { .pair = *pair, .side = side };
	int err;

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
		hs->client_st = (__u64)st;
	}
	st->since = bpf_ktime_get_ns();
	st->flow = *flow;
	/* NOEXIST: a collision of sequence numbers, or a forged one, must not displace anybody */
	err = peers.sock_hash_update(skops, &self, BPF_NOEXIST);
	if (err) {
		sockets.sk_storage_delete(sk);
		return refused(err);
	}
	bpf_sock_ops_cb_flags_set(skops,
				  skops->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG);
	return 0;
}

/*
 * A socket that was connected before: connect(AF_UNSPEC) leaves it on the sockhash with its unread
 * messages (only close() takes it off), where the old peer's messages would reach the new one.
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

/*
 * shutdown(SHUT_WR) or close(). A reader that then waits on an accelerated socket is woken by the
 * acknowledgement of its FIN, finds nothing, and its blocking recv() returns EAGAIN: unlike TCP's,
 * the sockhash's recv() does not go back to wait (tcp_bpf_recvmsg()). So this end leaves the map
 * now, before anybody can wait, if nothing is queued or on its way to it.
 *
 * The peer's send() takes a reference to its psock, then its sk_msg program looks at our
 * sk_shutdown; here sk_shutdown was set (inet_shutdown()), then we look at that reference. With a
 * full barrier between each two, one of them sees the other.
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
	full_barrier(st);
	if (!idle_sender(peer_sk) || !psock_queue_empty(psock))
		return;
	peers.delete(&self);
}

/* The accepting side speaks first: raised for each SYN a listener in scope answers. */
inline_fn void syn_answered(struct bpf_sock_ops *skops)
{
	struct flow flow;
	__u64 now;

	if (skops->is_fullsock || !flow_in_scope(skops, SERVER, &flow))
		return;
	now = bpf_ktime_get_ns();
	answered.update(&flow, &now);
}

inline_fn void client_established(struct bpf_sock_ops *skops)
{
	struct handshake hs = {};
	struct pair pair = {};
	struct bpf_sock *sk = skops->sk;
	struct tcp_sock *tp;
	enum counter reason;
	__u32 write_seq = 0;
	__u64 *answer;

	if (!sk || !flow_in_scope(skops, CLIENT, &hs.flow))
		return;
	answer = answered.lookup(&hs.flow);
	if (!answer || bpf_ktime_get_ns() - *answer > ANSWER_VALID_NS)
		return decline(DECLINED_PEER_OUTSIDE, &hs.flow);
	answered.delete(&hs.flow);
	if (on_trial(sk))
		return;

	/*
	 * TCP Fast Open. The SYN's data was taken: the server end was established, and declined,
	 * before us. It was not: it still waits in the write queue (checked below).
	 */
	if (skops->bytes_acked > 1)
		return;

	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	pair.client_seq = skops->snd_nxt;
	pair.server_seq = skops->rcv_nxt;
	reason = unsuitable((__u64)tp);
	if (!reason && (KERNEL_FIELD(write_seq, (__u64)tp, OFF_tcp_sock_write_seq) ||
			write_seq != pair.client_seq))
		reason = DECLINED_EARLY_DATA;
	if (!reason)
		reason = join(skops, sk, CLIENT, &hs.flow, &pair, &hs);
	if (!reason)
		hs.client_sk = (__u64)tp;
	/* A declined client leaves word too (client_sk 0), so that the pair is counted once. */
	handshakes.update(&pair, &hs);
	if (reason)
		decline(reason, &hs.flow);
	else
		report(EVENT_ACTIVE, 0, &hs.flow, bpf_ktime_get_ns(), NULL);
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

inline_fn int same_flow(const struct flow *a, const struct flow *b)
{
	return a->client_ip[0] == b->client_ip[0] && a->client_ip[1] == b->client_ip[1] &&
	       a->client_ip[2] == b->client_ip[2] && a->client_ip[3] == b->client_ip[3] &&
	       a->server_ip[0] == b->server_ip[0] && a->server_ip[1] == b->server_ip[1] &&
	       a->server_ip[2] == b->server_ip[2] && a->server_ip[3] == b->server_ip[3] &&
	       a->client_port == b->client_port && a->server_port == b->server_port &&
	       a->netns == b->netns;
}

inline_fn void server_established(struct bpf_sock_ops *skops)
{
	struct flow flow;
	struct pair pair = {};
	struct end client = {};
	struct bpf_sock *sk = skops->sk;
	struct handshake *hs;
	struct tcp_sock *tp;
	enum counter reason;
	__u32 write_seq = 0;

	if (!sk || !flow_in_scope(skops, SERVER, &flow) || on_trial(sk))
		return;
	if (skops->skb_tcp_flags & TCPHDR_SYN)
		return decline(DECLINED_EARLY_DATA, &flow);
	pair.client_seq = skops->rcv_nxt;
	pair.server_seq = skops->snd_nxt;
	hs = handshakes.lookup(&pair);
	if (!hs) {
		/* or a client in scope that takes this client's port would believe it */
		answered.delete(&flow);
		return decline(DECLINED_PEER_OUTSIDE, &flow);
	}
	if (!same_flow(&flow, &hs->flow) || hs->server_sk)
		return decline(DECLINED_MISMATCH, &flow);
	if (!hs->client_sk) {
		handshakes.delete(&pair);
		return;
	}

	tp = bpf_skc_to_tcp_sock(sk);
	if (!tp)
		return;
	reason = unsuitable((__u64)tp);
	/* The client's first message may have overtaken its ACK (RPS): it went through TCP. */
	if (!reason && (segment_has_data(skops) ||
			KERNEL_FIELD(write_seq, hs->client_sk, OFF_tcp_sock_write_seq) ||
			write_seq != pair.client_seq))
		reason = DECLINED_EARLY_DATA;
	if (!reason)
		reason = join(skops, sk, SERVER, &flow, &pair, hs);
	if (!reason) {
		/* The client's first message finds the pair complete through this. */
		WRITE_ONCE(hs->server_sk, (__u64)tp);
		count(ACCELERATED_CONNECTIONS, 1);
		report(EVENT_ACCELERATED, 0, &flow, bpf_ktime_get_ns(), NULL);
		return;
	}
	/* Nothing was ever redirected to the client end, so taking it off loses nothing (I5). */
	client.pair = pair;
	client.side = CLIENT;
	peers.delete(&client);
	handshakes.delete(&pair);
	decline(reason, &flow);
}

/* Called in the context of connect(). */
inline_fn void connecting(struct bpf_sock_ops *skops)
{
	struct flow flow;

	if (tracing() && flow_in_scope(skops, CLIENT, &flow))
		note_caller(&flow);
}

int sockredir_pair(struct bpf_sock_ops *skops)
{
	int zero = 0;
	struct settings *s = settings.lookup(&zero);

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
		if (skops->args[1] == BPF_TCP_FIN_WAIT1)
			half_closed(skops);
		if (skops->args[1] == BPF_TCP_CLOSE && tracing())
			closed(skops);
		return 1;
	}
	if (!s || s->stopped)
		return 1;
	switch (skops->op) {
	case BPF_SOCK_OPS_RWND_INIT:
		syn_answered(skops);
		break;
	case BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB:
		client_established(skops);
		break;
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		server_established(skops);
		break;
	}
	return 1;
}

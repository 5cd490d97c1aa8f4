/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * An end that is shut down, closed, reset or connected again leaves the sockhash inside that call,
 * where a sock_ops program may delete its entry.
 */
#pragma once
#include "in_flight.h"
#include "../peer_state.h"

/*
 * A socket that was connected before. connect(AF_UNSPEC) leaves it on the sockhash (only close()
 * takes it off), where its old peer's messages would reach the new one, if ended() did not see
 * the end of it.
 */
inline_fn void leave_before_reconnect(struct bpf_sock_ops *skops)
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

/* Whether connect(AF_UNSPEC) has ended a connection: that leaves no error, and there were not two FINs. */
inline_fn int disconnected(struct tcp_sock *tp, __u32 old_state)
{
	if (old_state == BPF_TCP_ESTABLISHED || old_state == BPF_TCP_CLOSE_WAIT)
		return 1;
	if (old_state != BPF_TCP_FIN_WAIT1 && old_state != BPF_TCP_FIN_WAIT2)
		return 0;
	/* set by tcp_fin() */
	return !(own_has_flag(tp, SOCK_DONE));
}

/*
 * The connection has ended, and the socket may still be on the sockhash. A reset, or a time-out, is
 * told by an error that is set before the state (tcp_reset()). What is unread then can still be
 * read; without any the entry goes, as tcp_bpf_sendmsg() reports the error, but does not clear it.
 *
 * tcp_disconnect() throws away what is unread, but does not know of the psock's queue, which goes
 * with the entry.
 */
inline_fn void ended(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct sock_state *st;
	struct tcp_sock *tp;
	struct other_end other = {};
	struct end self;
	__u64 psock;
	int err;

	if (!sk)
		return;
	st = sockets.sk_storage_get(sk, NULL, 0);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!st || !tp)
		return;
	find_other_end(&other, st);
	err = kernel_err((__u64)tp);
	psock = psock_of((__u64)tp);
	if (err ? !psock || !idle_sender(other.sk, st) || !psock_queue_empty(psock) :
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
 * sees the other: pairs with sockredir_msg(). The peer is looked for after that as well, since one
 * that is paired meanwhile may send at once.
 */
inline_fn void half_closed(struct bpf_sock_ops *skops)
{
	struct bpf_sock *sk = skops->sk;
	struct sock_state *st;
	struct tcp_sock *tp;
	struct other_end other = {};
	struct end self;
	__u64 psock;

	if (!sk)
		return;
	st = sockets.sk_storage_get(sk, NULL, 0);
	tp = bpf_skc_to_tcp_sock(sk);
	if (!st || !tp)
		return;
	psock = psock_of((__u64)tp);
	if (!psock)
		return; /* closed: the kernel took it off before */
	self = st->self;
	announce_change(st);
	find_other_end(&other, st);
	if (!idle_sender(other.sk, st) || !psock_queue_empty(psock))
		return;
	peers.delete(&self);
}

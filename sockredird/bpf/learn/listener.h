/* SPDX-License-Identifier: GPL-2.0-only */
/* Under what is kept which connections have shown: the listener, and for clients the user as well. */
#pragma once
#include "../peer_state.h"

inline_fn struct listener listener_in(const struct flow *flow)
{
	struct listener l = { .netns = flow->netns, .port = flow->server_port };

	return l;
}

/* The same, for what is kept of the connections of one user's clients. */
inline_fn struct listener listener_for_user_of(const struct listener *l, __u64 client_sk)
{
	struct listener one = { .netns = l->netns, .port = l->port };

	one.user = kernel_uid(client_sk) + 1;
	return one;
}

/* As the server end sees itself; as the client does where that is not known (yet). */
inline_fn struct listener listener_of(const struct sock_state *st)
{
	struct listener l = listener_in(&st->flow);
	struct end peer = st->peer;
	__u64 peer_st = st->peer_st;
	struct server_address server = st->server;

	if (st->self.side == CLIENT && is_state_of(peer_st, &peer))
		STATE_FIELD(server, peer_st, server);
	if (server.netns) {
		l.netns = server.netns;
		l.port = server.port;
	}
	return l;
}

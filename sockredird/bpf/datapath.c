/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The datapath, from here. The life of a connection:
 *
 *  1. A listener in scope answers a SYN and records it.                        pair/scope.h
 *  2. The client end is established, finds the record, goes on the sockhash
 *     `peers` and leaves a handshake.                                          pair/pair.c
 *  3. The server end is established, finds the handshake and goes on the
 *     sockhash too: the two ends are a pair.                                   pair/pair.c
 *     Or both were established before, and the daemon has them joined.         pair/join.c
 *  4. A program sends. The sk_msg program runs under the sender's socket lock
 *     and puts the message into the peer's psock queue, or leaves it to TCP.   carry/redirect.c
 *  5. The reader empties its psock queue before TCP's queue (tcp_bpf_recvmsg()
 *     in the kernel), so a direction is redirected only while the reader has
 *     read all that went by TCP. It may go to TCP, and come back.              carry/begin.h
 *     What is unread is bounded, beyond which it pauses.                       carry/bounds.h
 *  6. A program asks for what no member of a sockhash can do, or shuts down:
 *     the pair is announced as changed, and no message is redirected any more. leave/guard.c, detect.c
 *  7. The daemon walks over the sockhash and takes off the pairs that leave,
 *     in steps an RCU grace period apart; they go on as plain TCP.             leave/walk.c
 *  8. The connection ends. What it saved is added to its listener's balance;
 *     listeners that gain nothing are left alone.                              learn/learn.h
 *
 * show/ reports it: by events, and by lists of what is on the sockhash.
 *
 * Who writes which field, and which barrier pairs with which: state.h, above struct sock_state.
 *
 * BCC rewrites map accesses in its main file only, so the loader puts the text of each #include "..."
 * in its place (loader/compiler.py: source()).
 */
#include "pair/pair.c"
#include "carry/redirect.c"
#include "leave/guard.c"
#include "leave/detect.c"
#include "leave/fionread.c"
#include "leave/walk.c"
#include "pair/join.c"

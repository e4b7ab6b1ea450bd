/* The owner-writes inbox protocol (docs/protocol.md), for spin.
 *
 * One process a rank. One statement (or d_step) is one event that others can observe: an MPI atomic
 * on a word, or the reading or writing of one chunk of a vector. Steps between which others may
 * come are never put into one atomic block.
 *
 * Abstractions
 *   - A vector has two chunks, so that a half-written payload exists. Values are integers scaled so
 *     that all halves are exact.
 *   - A retry loop ("try again, draining meanwhile") is a guard that blocks until the retry would
 *     succeed, beside the draining. A rank stuck in it for good is then a deadlock, which spin
 *     reports as an invalid end state.
 *   - `gen` counts a rank's operations. Claims are never broken: no rank dies here.
 *   - Memory is sequentially consistent. A missing flush or Win.Sync is what the mutants
 *     PUBLISH_FIRST (release) and STALE_PAYLOAD (acquire) stand for.
 *
 * A configuration: -DN= ranks, each making -DAVERAGES= attempts with any peers. Bit masks of ranks:
 * -DTWICE= makes one attempt more, -DLOCAL= adds to itself once, -DADDERS= adds to any peer once; a
 * rank does these in any order. -DADD_BESIDE: remote adds run beside the rank's other operations
 * instead of being awaited at once. -DCLOSED_END: the end of the design, where a rank first sets
 * its word to CLOSED, instead of the end of the code, where it goes on answering until all have come;
 * with -DTOGETHER nobody closes before all attempts have been made.
 *
 * Checks: CHECK is about a step, LAW about the end. -DLAWS_ONLY drops the former, so that a mutant
 * must show in the result.
 */

#ifndef N
#define N 3
#endif
#ifndef AVERAGES
#define AVERAGES 1
#endif
#ifndef TWICE
#define TWICE 0
#endif
#ifndef LOCAL
#define LOCAL 0
#endif
#ifndef ADDERS
#define ADDERS 0
#endif
#define CHUNKS 2
#if TWICE
#define UNIT (1 << (N * (AVERAGES + 1))) /* every average halves at most once */
#else
#define UNIT (1 << (N * AVERAGES))
#endif

#ifdef LAWS_ONLY
#define CHECK(condition) skip
#else
#define CHECK(condition) assert(condition)
#endif
#define LAW(condition) assert(condition)

/* The word of a rank: kind, claimant, the claimant's generation. */
#define FREE 0
#define CLAIMED(i, g) (64 + 16 * (i) + (g))
#define FULL_AVERAGE(i, g) (128 + 16 * (i) + (g))
#define FULL_ADD(i, g) (192 + 16 * (i) + (g))
#define CLOSED 1
#define FULL(w) ((w) >= 128)

#define AT(r, c) ((r) * CHUNKS + (c))
#define TAG(i, g) (1 + 16 * (i) + (g))
#define POISON 12345 /* in an inbox: never written, or already applied */

byte word[N];
short x[N * CHUNKS];     /* x_r is written by rank r only */
short inbox[N * CHUNKS];
byte arrived, leaving;   /* at the first barrier of the end, and at the second */
bool settled[N];         /* the rank's remote adds have been applied */

/* Ghosts: for the checks only, the protocol does not read them. */
byte tag[N * CHUNKS];    /* whose delta lies in this chunk of an inbox; 0: none, or applied */
byte pending[N];         /* the delta published to r and not yet wholly applied; 0: none */
byte users[N];           /* operations now using x_r and r's inbox, until their delta is applied */
byte published, applied, successes, attempted, ended;
short expected[CHUNKS];  /* the sum of all x_r and of what was added */
bool returned[N];

/* ---- Inbox of the own rank ---------------------------------------------------------------- */

inline apply_chunk(c) {
    d_step {
        CHECK(pending[me] != 0 && tag[AT(me, c)] == pending[me]); /* whole, once */
#ifdef STALE_PAYLOAD
        x[AT(me, c)] = x[AT(me, c)] + (c == 0 -> seen : inbox[AT(me, c)]);
#else
        x[AT(me, c)] = x[AT(me, c)] + inbox[AT(me, c)];
#endif
        tag[AT(me, c)] = 0;
        inbox[AT(me, c)] = POISON
    }
}

inline free_inbox_word() {
    d_step {
        CHECK(FULL(word[me]));
        word[me] = (closed -> CLOSED : FREE);
#ifndef FREE_FIRST
        pending[me] = 0; users[me]--; applied++;
#endif
    }
}

/* To be run when the own word is FULL. */
inline apply_inbox() {
#ifdef FREE_FIRST
    free_inbox_word();
#endif
    apply_chunk(0);
    apply_chunk(1);
#ifdef FREE_FIRST
    d_step { pending[me] = 0; users[me]--; applied++ }
#else
    free_inbox_word();
#endif
}

inline drain() {
#ifdef STALE_PAYLOAD
    seen = inbox[AT(me, 0)]; /* read before the word says FULL */
#endif
    if
    :: FULL(word[me]) -> apply_inbox()
    :: else
    fi
#ifdef STALE_PAYLOAD
    ; seen = 0
#endif
}

/* ---- Inbox of another rank ---------------------------------------------------------------- */

inline claim(r) {
    d_step {
        CHECK(!returned[r]);
        ok = (word[r] == FREE);
        word[r] = (ok -> CLAIMED(me, gen) : word[r])
    }
}

inline release(r) {
    d_step {
        CHECK(!returned[r] && word[r] == CLAIMED(me, gen));
        word[r] = FREE
    }
}

inline put_chunk(c, delta) {
    CHECK(!returned[peer]);
    CHECK(pending[peer] == 0 && tag[AT(peer, c)] == 0); /* nothing unapplied is overwritten */
    inbox[AT(peer, c)] = delta;
    tag[AT(peer, c)] = TAG(me, gen)
}

inline publish(content, delta_is_right) {
    d_step {
        CHECK(!returned[peer] && word[peer] == CLAIMED(me, gen) && pending[peer] == 0);
        CHECK(delta_is_right);
        word[peer] = content;
        pending[peer] = TAG(me, gen);
        published++
    }
}

/* ---- average ------------------------------------------------------------------------------ */

inline exchange_chunk(c) {
#ifdef READ_BEFORE_CLAIM
    delta = (x[AT(me, c)] - (c == 0 -> early : x[AT(peer, c)])) / 2;
#else
    delta = (x[AT(me, c)] - x[AT(peer, c)]) / 2;
#endif
    d_step {
        put_chunk(c, delta);
        x[AT(me, c)] = x[AT(me, c)] - delta;
        delta = 0
    }
}

#if LOCAL
#define BOTH_BECOME_THE_MEAN true /* the peer may add to itself meanwhile */
#else
#define BOTH_BECOME_THE_MEAN \
    (x[AT(me, 0)] == x[AT(peer, 0)] + inbox[AT(peer, 0)] && \
     x[AT(me, 1)] == x[AT(peer, 1)] + inbox[AT(peer, 1)])
#endif

inline use_pair() {
    d_step {
        CHECK(users[me] == 0 && users[peer] == 0); /* pairs are exclusive */
        users[me]++; users[peer]++
    }
}

inline exchange() {
    use_pair();
#ifdef PUBLISH_FIRST
    publish(FULL_AVERAGE(me, gen), BOTH_BECOME_THE_MEAN);
#endif
    exchange_chunk(0);
    exchange_chunk(1);
#ifndef PUBLISH_FIRST
    publish(FULL_AVERAGE(me, gen), BOTH_BECOME_THE_MEAN);
#endif
    d_step { successes++; users[me]-- };
}

/* Straight line: no statement here waits for another rank. */
inline average() {
    gen++;
    drain();
#ifdef READ_BEFORE_CLAIM
    early = x[AT(peer, 0)];
#endif
#if defined(OWN_UNCLAIMED)
    claim(peer);
    if
    :: ok -> exchange()
    :: else
    fi;
#else
#ifdef CALLER_FIRST
    d_step { first = me; second = peer };
#else
    d_step { first = (me < peer -> me : peer); second = me + peer - first };
#endif
    claim(first);
    if
    :: ok ->
        claim(second);
        if
        :: ok -> exchange(); release(me)
        :: else -> release(first)
        fi
    :: else
    fi;
#endif
    attempted++;
#ifdef READ_BEFORE_CLAIM
    early = 0;
#endif
}

/* ---- add ---------------------------------------------------------------------------------- */

#define V(c) (UNIT * (7 + 4 * (c)))

inline local_add() {
    d_step { x[AT(me, 0)] = x[AT(me, 0)] + V(0); expected[0] = expected[0] + V(0) };
    d_step { x[AT(me, 1)] = x[AT(me, 1)] + V(1); expected[1] = expected[1] + V(1) };
}

/* Awaited: the rank drains meanwhile. Beside: the rank itself goes on, draining as ever. */
#ifdef ADD_BESIDE
#define MEANWHILE false
#else
#define MEANWHILE FULL(word[me])
#endif
#ifdef ADD_WITHOUT_DRAIN
#define MEANWHILE_APPLIED false
#else
#define MEANWHILE_APPLIED MEANWHILE
#endif

inline remote_add() {
    gen++;
    do
    :: d_step { word[peer] == FREE || word[peer] == CLOSED ->
                CHECK(!returned[peer] && users[peer] == 0);
                word[peer] = CLAIMED(me, gen); users[peer]++ };
       break
    :: MEANWHILE -> apply_inbox()
    od;
    skip; /* a break must not jump into a d_step */
    d_step { put_chunk(0, V(0)); expected[0] = expected[0] + V(0) };
    d_step { put_chunk(1, V(1)); expected[1] = expected[1] + V(1) };
    publish(FULL_ADD(me, gen), true);
    do
    :: word[peer] != FULL_ADD(me, gen) -> break
    :: MEANWHILE_APPLIED -> apply_inbox()
    od;
    CHECK(pending[peer] != TAG(me, gen)); /* done means applied */
}

/* ---- A rank, from its first operation to its return --------------------------------------- */

inline pick_peer() {
    if
    :: me != 0 -> peer = 0
    :: me != 1 -> peer = 1
#if N > 2
    :: me != 2 -> peer = 2
#endif
    fi
}

inline forget() { d_step { peer = 0; first = 0; second = 0; ok = false } }

#ifdef CLOSED_END
inline close_word() {
#ifdef CLOSE_FLAG_EARLY
    closed = true;
#endif
    do
    :: d_step { word[me] == FREE -> word[me] = CLOSED; closed = true };
       break
    :: FULL(word[me]) -> apply_inbox()
    od
}
#endif

#ifdef ADD_BESIDE
proctype adder(byte me) {
    byte peer, gen = 8; /* apart from the rank's own generations */
    bool closed;

    atomic { pick_peer() };
    remote_add();
    settled[me] = true
}
#endif

proctype rank(byte me) {
    byte peer, first, second, gen, averages = AVERAGES + ((TWICE >> me) & 1);
    byte locals = (LOCAL >> me) & 1;
#ifdef ADD_BESIDE
    byte adds = 0;
#else
    byte adds = (ADDERS >> me) & 1;
#endif
    short delta;
    bool ok, closed;
#ifdef STALE_PAYLOAD
    short seen;
#endif
#ifdef READ_BEFORE_CLAIM
    short early;
#endif

    do
    :: atomic { averages > 0 -> averages--; pick_peer() };
       average();
       forget()
    :: atomic { adds > 0 -> adds--; pick_peer() };
       remote_add();
       forget()
    :: locals > 0 -> locals--; local_add()
    :: FULL(word[me]) -> apply_inbox()
    :: averages + adds + locals == 0 -> break
    od;

#ifdef ADD_BESIDE
    do
    :: settled[me] -> break
    :: FULL(word[me]) -> apply_inbox()
    od;
#endif
#ifdef TOGETHER
    do
    :: attempted == N * AVERAGES -> break
    :: FULL(word[me]) -> apply_inbox()
    od;
#endif
#ifdef CLOSED_END
    close_word();
#endif
    arrived++;
    do
    :: arrived == N -> break
    :: FULL(word[me]) -> apply_inbox()
    od;
    skip;
#ifndef NO_LAST_DRAIN
    drain();
#endif
#ifndef CLOSED_END
    leaving++;
    do
    :: leaving == N -> break
    :: FULL(word[me]) -> apply_inbox()
    od;
    skip;
#endif
    d_step { returned[me] = true; ended++ }
}

#ifdef CLOSED_END
#define AT_REST CLOSED
#else
#define AT_REST FREE
#endif

init {
    byte r;
    d_step {
        for (r : 0 .. N - 1) {
            x[AT(r, 0)] = UNIT * r * (r + 1) / 2;
            x[AT(r, 1)] = UNIT * (2 - 3 * r);
            expected[0] = expected[0] + x[AT(r, 0)];
            expected[1] = expected[1] + x[AT(r, 1)];
            inbox[AT(r, 0)] = POISON;
            inbox[AT(r, 1)] = POISON;
            settled[r] = !((ADDERS >> r) & 1)
        };
        r = 0
    };
    atomic {
        run rank(0);
        run rank(1);
#if N > 2
        run rank(2);
#endif
#ifdef ADD_BESIDE
        for (r : 0 .. N - 1) {
            if
            :: (ADDERS >> r) & 1 -> run adder(r)
            :: else
            fi
        };
        r = 0
#endif
    };

    d_step { ended == N ->
        for (r : 0 .. N - 1) {
            CHECK(word[r] == AT_REST && pending[r] == 0 && users[r] == 0);
            expected[0] = expected[0] - x[AT(r, 0)];
            expected[1] = expected[1] - x[AT(r, 1)]
        };
        LAW(expected[0] == 0 && expected[1] == 0); /* no delta lost, none applied twice */
        LAW(applied == published);
#if AVERAGES && !ADDERS && (defined(TOGETHER) || !defined(CLOSED_END))
        LAW(successes > 0); /* some attempt always succeeds */
#endif
#if N == 2 && LOCAL == 0 && ADDERS == 0
        LAW(successes == 0 || (x[0] == x[CHUNKS] && x[1] == x[CHUNKS + 1])); /* not a swap */
#endif
    }
}

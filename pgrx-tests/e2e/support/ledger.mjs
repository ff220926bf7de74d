// @ts-check
/**
 * Writers that keep a ledger of the events that their changes are to make, in the transaction of
 * the change, and the audit of what a sink was sent against it. After a crash the ledger is what
 * the database kept, so nobody has to know which commits were heard.
 *
 * An event is in the ledger once: a job is created once, changes hands once, is deleted once. The
 * place of an event among those of its organisation is drawn from a counter, under a lock that the
 * transaction takes first and in ascending order.
 */
import assert from 'node:assert/strict';
import { waitUntil } from '../../harness/wait.mjs';
import { column, connect } from './database.mjs';

/** @typedef {import('../../harness/cluster.mjs').Cluster} Cluster */
/** @typedef {import('./random.mjs').Random} Random */
/** @typedef {import('pg').Client} Client */

const ORGANISATIONS = 5;
const RECOVERY_MS = 60_000;

export const SCHEMA = `
create extension pg_outbox;
create table counter (org_id text primary key, n int not null default 0);
insert into counter select 'org-' || i from generate_series(0, ${ORGANISATIONS - 1}) i;
create sequence job_id;
create table job (id int primary key, org_id text not null, has_moved bool not null default false);
create index on job (org_id, has_moved, id);
create table ledger (
  org_id text, place int, event_type text, job_id int,
  primary key (org_id, place), unique (org_id, event_type, job_id)
);
select outbox.attach('job');
`;

const STEPS = {
  create: `
    with made as (insert into job (id, org_id)
        select nextval('job_id'), $1 from generate_series(1, $2::int) returning id),
      next as (update counter set n = n + $2::int where org_id = $1 returning n)
    insert into ledger
    select $1, n - $2::int + row_number() over (order by id), 'job.created', id from made, next`,
  move: `
    with moved as (update job set org_id = $2, has_moved = true
        where id = (select min(id) from job where org_id = $1 and not has_moved) returning id),
      here as (update counter set n = n + (select count(*) from moved)
        where org_id = $1 returning n),
      there as (update counter set n = n + (select count(*) from moved)
        where org_id = $2 returning n)
    insert into ledger
    select $1, n, 'job.updated', id from moved, here
    union all
    select $2, n, 'job.updated', id from moved, there`,
  remove: `
    with gone as (delete from job
        where id = (select max(id) from job where org_id = $1) returning id),
      next as (update counter set n = n + (select count(*) from gone) where org_id = $1 returning n)
    insert into ledger select $1, n, 'job.deleted', id from gone, next`,
};

/** What a connection says when the server, or its own process there, is gone. */
const CRASH_CODES = ['57P01', '57P02', '57P03', 'ECONNREFUSED', 'ECONNRESET', 'EPIPE'];
const CRASH_TEXT =
  /^Connection terminated|connection error and is not queryable|^Client was closed/;

/**
 * A connection to a server that may be about to start again.
 *
 * @param {Cluster} cluster
 */
export function connectSoon(cluster) {
  return waitUntil(() => connect(cluster), 'the server to take a connection',
    { timeoutMs: RECOVERY_MS });
}

/**
 * Begins to write. A writer whose connection breaks makes another one, and settles first what it
 * had prepared. `pids` are those of the server's processes that write.
 *
 * @param {Cluster} cluster
 * @param {Random} random
 * @param {number} count
 */
export function startWriters(cluster, random, count) {
  const life = { isOver: false };
  /** @type {Map<number, number>} */
  const pids = new Map();
  const running = Array.from({ length: count }, (_, number) =>
    keepWriting(cluster, number, random.fork(), life, pids));
  // Whoever awaits `stop` is told; until then a failure must not end the process.
  const all = Promise.all(running);
  all.catch(() => (life.isOver = true));
  return {
    /** The process of some writer. @param {Random} chooser */
    pid: (chooser) => chooser.pick([...pids.values()]),
    stop: async () => {
      life.isOver = true;
      await all;
    },
  };
}

/**
 * @param {Cluster} cluster
 * @param {number} number
 * @param {Random} random
 * @param {{ isOver: boolean }} life
 * @param {Map<number, number>} pids
 */
async function keepWriting(cluster, number, random, life, pids) {
  for (let turn = 0; ;) {
    const client = await connectSoon(cluster);
    try {
      pids.set(number, (await column(client, 'select pg_backend_pid()'))[0]);
      await settle(client, number, random);
      while (!life.isOver) await transact(client, random, `w${number}_${(turn += 1)}`);
      return;
    } catch (error) {
      const { code, message } = /** @type {import('pg').DatabaseError} */ (error);
      if (!CRASH_CODES.includes(code ?? '') && !CRASH_TEXT.test(message)) throw error;
    } finally {
      await client.end().catch(() => {});
    }
  }
}

/**
 * Ends what was prepared before a crash.
 *
 * @param {Client} client
 * @param {number} number
 * @param {Random} random
 */
async function settle(client, number, random) {
  const names = await column(client,
    "select gid from pg_prepared_xacts where split_part(gid, '_', 1) = $1", [`w${number}`]);
  for (const name of names) {
    await client.query(`${random.chance(50) ? 'commit' : 'rollback'} prepared '${name}'`);
  }
}

/** @param {Client} client @param {Random} random @param {string} name */
async function transact(client, random, name) {
  const all = Array.from({ length: ORGANISATIONS }, (_, place) => `org-${place}`);
  const organisations = all.filter(() => random.chance(40));
  if (organisations.length === 0) organisations.push(random.pick(all));
  await client.query('begin');
  await client.query(
    'select from counter where org_id = any ($1) order by org_id for update', [organisations]);
  for (let steps = 1 + random.below(4); steps > 0; steps -= 1) {
    const kept = random.pick(['always', 'always', 'savepoint', 'undone']);
    if (kept !== 'always') await client.query('savepoint s');
    await change(client, random, organisations);
    if (kept === 'savepoint') await client.query('release s');
    if (kept === 'undone') await client.query('rollback to s');
  }
  const ending = random.below(100);
  if (ending < 80) await client.query('commit');
  else if (ending < 92) await client.query('rollback');
  else {
    await client.query(`prepare transaction '${name}'`);
    await client.query(`${random.chance(50) ? 'commit' : 'rollback'} prepared '${name}'`);
  }
}

/** @param {Client} client @param {Random} random @param {string[]} organisations */
async function change(client, random, organisations) {
  const [here, there] = [random.pick(organisations), random.pick(organisations)];
  const step = random.pick(['create', 'create', 'create', 'move', 'remove']);
  if (step === 'create') await client.query(STEPS.create, [here, 1 + random.below(5)]);
  else if (step === 'remove') await client.query(STEPS.remove, [here]);
  else if (here !== there) await client.query(STEPS.move, [here, there]);
}

/** @typedef {{ org_id: string, event_type: string, job_id: number, key: string }} Entry */

/**
 * What the database holds to have happened, in the order of each organisation.
 *
 * @param {Client} client
 * @returns {Promise<Entry[]>}
 */
export async function readLedger(client) {
  const { rows } = await client.query('select * from ledger order by org_id, place');
  return rows.map((row) => ({ ...row, key: keyOf(row) }));
}

/** @param {{ org_id: string, event_type: string, job_id: number }} event */
const keyOf = ({ org_id, event_type, job_id }) => `${org_id} ${event_type} ${job_id}`;

/**
 * Compares what was sent, event by event, with the ledger: none is missing, none invented, one that
 * came more often has one `event_id`, and what is new of an organisation came in its order. What is
 * sent again begins somewhere behind and leaves nothing out.
 *
 * @param {Entry[]} ledger
 * @param {any[]} sent as the sink lists it
 * @param {(jobId: number) => boolean} [isExempt] which ones have no order: they were refused
 */
export function audit(ledger, sent, isExempt = () => false) {
  const arrivals = sent.map((event) => {
    assert.notEqual(event.event_type, 'refresh', 'the audit wants each event by itself');
    const named = { ...event, job_id: event.ids.job_id };
    return { ...named, key: keyOf(named) };
  });
  assertSameMembers(arrivals, ledger);
  assertOneIdEach(arrivals);
  for (const organisation of new Set(ledger.map(({ org_id }) => org_id))) {
    const inOrder = (/** @type {any[]} */ events) => events
      .filter(({ org_id, job_id }) => org_id === organisation && !isExempt(job_id))
      .map(({ key }) => key);
    assertOrder(inOrder(arrivals), inOrder(ledger));
  }
  const distinct = new Set(arrivals.map(({ key }) => key)).size;
  return { events: distinct, repeated: arrivals.length - distinct };
}

/** @param {Entry[]} arrivals @param {Entry[]} ledger */
function assertSameMembers(arrivals, ledger) {
  const arrived = new Set(arrivals.map(({ key }) => key));
  const expected = new Set(ledger.map(({ key }) => key));
  const found = {
    missing: [...expected].filter((key) => !arrived.has(key)),
    invented: [...arrived].filter((key) => !expected.has(key)),
  };
  assert.deepEqual(found, { missing: [], invented: [] });
}

/** @param {any[]} arrivals */
function assertOneIdEach(arrivals) {
  const ids = new Map();
  const keys = new Map();
  for (const { key, event_id } of arrivals) {
    assert.equal(ids.get(key) ?? event_id, event_id, `${key} came under two ids`);
    assert.equal(keys.get(event_id) ?? key, key, `${event_id} is the id of two events`);
    ids.set(key, event_id);
    keys.set(event_id, key);
  }
}

/** @param {string[]} arrivals @param {string[]} expected */
function assertOrder(arrivals, expected) {
  const places = new Map(expected.map((key, place) => [key, place]));
  let last = -1;
  for (const key of arrivals) {
    const place = places.get(key) ?? Infinity;
    assert.ok(place <= last + 1, `${key} came after ${expected[last]}, too early`);
    last = place;
  }
}

// @ts-check
/**
 * A case of capture: a table, what is done to it, and exactly the events that must be committed.
 *
 * Each case has a schema and organisations of its own, so that cases share a database and no case
 * sees another's events. In SQL, `:a`, `:b` and `:c` stand for its organisations.
 */
import assert from 'node:assert/strict';
import { randomUUID } from 'node:crypto';
import { connect, storedEvents } from './database.mjs';

/** @typedef {import('../../harness/cluster.mjs').Cluster} Cluster */
/** @typedef {Record<string, string>} Organisations */

export const JOB = `create table job (
  id int primary key, org_id uuid, status text not null default 'new', note text)`;

let cases = 0;

/**
 * @typedef {object} Case
 * @property {string} [table] makes the table, `job` by default
 * @property {string} [given] what it holds before it is attached
 * @property {string} [attach]
 * @property {string | string[]} [run] statements; each string is a message of its own
 * @property {(world: World) => Promise<void>} [act] for what statements alone cannot say
 * @property {Record<string, string[]>} expect for each organisation its events, oldest first,
 *   written as `verb key`; an organisation that is not named must have none
 * @property {() => Organisations} [organisations] when they are no uuids
 */

/**
 * @typedef {object} World
 * @property {Cluster} cluster
 * @property {string} schema
 * @property {Organisations} organisations
 * @property {import('pg').Client} client
 * @property {(sql: string) => string} fill replaces the names of organisations
 * @property {(sql: string) => Promise<any>} query
 * @property {(options?: { user?: string }) => Promise<World>} another a second session
 * @property {() => Promise<void>} close
 */

const uuids = () => ({ a: randomUUID(), b: randomUUID(), c: randomUUID() });

/**
 * @param {Cluster} cluster
 * @param {Case} spec
 */
export async function runCase(cluster, spec) {
  const { table = JOB, given, attach = "select outbox.attach('job')", run = [] } = spec;
  const organisations = (spec.organisations ?? uuids)();
  const schema = `case_${(cases += 1)}`;
  const world = await open(cluster, { schema, organisations });
  try {
    await world.query(`create schema ${schema}`);
    for (const sql of [table, given, attach, ...[run].flat()]) if (sql) await world.query(sql);
    await spec.act?.(world);
    const expected = { ...emptyFor(organisations), ...spec.expect };
    assert.deepEqual(await eventsByOrganisation(world), expected);
  } finally {
    await world.close();
  }
}

/**
 * @param {Cluster} cluster
 * @param {{ schema: string, organisations: Organisations, user?: string }} where
 * @returns {Promise<World>}
 */
async function open(cluster, { schema, organisations, user }) {
  const options = `-c search_path=${schema},public`;
  const client = await connect(cluster, { user, options });
  const fill = (/** @type {string} */ sql) => sql.replaceAll(/(?<!:):([a-c])\b/g,
    (_, name) => `'${organisations[name].replaceAll("'", "''")}'`);
  /** @type {World[]} */
  const others = [];
  return {
    cluster, schema, organisations, client, fill,
    query: (sql) => client.query(fill(sql)),
    another: async (who = {}) => {
      others.push(await open(cluster, { schema, organisations, ...who }));
      return /** @type {World} */ (others.at(-1));
    },
    close: async () => {
      for (const other of others) await other.close();
      await client.end();
    },
  };
}

/** @param {World} world */
export async function eventsByOrganisation({ client, organisations }) {
  const events = await storedEvents(client, Object.values(organisations));
  /** @type {Record<string, string[]>} */
  const found = emptyFor(organisations);
  const nameOf = Object.fromEntries(Object.entries(organisations).map(([name, id]) => [id, name]));
  for (const event of events) found[nameOf[event.org_id]].push(describe(event));
  return found;
}

/** @param {Organisations} organisations */
const emptyFor = (organisations) =>
  Object.fromEntries(Object.keys(organisations).map((name) => [name, /** @type {string[]} */ ([])]));

/** @param {import('./database.mjs').StoredEvent} event */
function describe({ event_type, ids }) {
  const names = Object.keys(ids).sort();
  const key = names.length === 1 && names[0] === 'job_id' ? ids.job_id : JSON.stringify(ids, names);
  return `${event_type.replace(/^job\./, '')} ${key}`;
}

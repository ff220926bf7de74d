// @ts-check
/** What the tests of failures share: tables, several sinks of one database, and what became. */
import { randomUUID } from 'node:crypto';
import { waitUntil } from '../../harness/wait.mjs';
import { SECRET } from './delivery.mjs';

/** @typedef {import('pg').Client} Client */

export const SCHEMA = `
create extension pg_outbox;
create table job (id int primary key, org_id text not null, note text);
create table flag (id int primary key, org_id text not null);
select outbox.attach('job', topic => 'cataloging');
select outbox.attach('flag', topic => 'review');
select outbox.set_secret('tests', '${SECRET}');
`;

/**
 * Names a sink of kind `realtime`, or gives one other options.
 *
 * @param {Client} client
 * @param {string} name
 * @param {string} url
 * @param {Record<string, unknown>} [options]
 */
export async function nameSink(client, name, url, options = {}) {
  const all = { url, jwt_secret: 'tests', events_per_second: 0, ...options };
  await client.query("select outbox.set_sink($1, 'realtime', $2)", [name, JSON.stringify(all)]);
}

/** Names that no other test uses. @param {number} count @returns {string[]} */
export const newOrganisations = (count) => Array.from({ length: count }, () => randomUUID());

let lastId = 0;

/**
 * Inserts jobs of these organisations in turn, in one statement, and returns their ids in order.
 *
 * @param {Client} client
 * @param {string[]} organisations
 * @param {number} count
 * @param {(ids: number[]) => void} [announce] told of the ids before anybody can hear of them
 * @returns {Promise<number[]>}
 */
export async function addJobs(client, organisations, count, announce = () => {}) {
  const ids = Array.from({ length: count }, () => (lastId += 1));
  announce(ids);
  await client.query(
    `insert into job (id, org_id)
     select id, ($2::text[])[1 + (place - 1) % cardinality($2)]
     from unnest($1::int[]) with ordinality as job (id, place)
     order by place`, [ids, organisations]);
  return ids;
}

/**
 * @param {Client} client
 * @param {string} sink
 * @returns {Promise<any>}
 */
export async function statusOf(client, sink) {
  return (await client.query('select * from outbox.status where sink = $1', [sink])).rows[0];
}

/**
 * The dead letters of these organisations, in the order of their events.
 *
 * @param {Client} client
 * @param {string[]} organisations
 * @returns {Promise<any[]>}
 */
export async function deadLetters(client, organisations) {
  const { rows } = await client.query(
    'select * from outbox.dead_letters where org_id = any ($1) order by event_id, sink',
    [organisations]);
  return rows;
}

/**
 * Waits until there are so many of them.
 *
 * @param {Client} client
 * @param {string[]} organisations
 * @param {number} count
 * @param {{ timeoutMs?: number }} [options]
 */
export function waitForDeadLetters(client, organisations, count, options) {
  return waitUntil(() => deadLetters(client, organisations), `${count} dead letters`,
    { ...options, accept: (rows) => rows.length === count });
}

/**
 * How many events of a sink wait for another try, each after a refusal of its own.
 *
 * @param {Client} client
 * @param {string} sink
 */
export async function retriesOf(client, sink) {
  const { rows } = await client.query(
    'select count(*)::int as count from _private.retries where sink = $1', [sink]);
  return rows[0].count;
}

/**
 * The ids under which events were captured, by job.
 *
 * @param {Client} client
 * @param {string[]} organisations
 * @returns {Promise<Map<number, string>>}
 */
export async function capturedIds(client, organisations) {
  const { rows } = await client.query(
    `select (ids ->> 'job_id')::int as job, event_id from outbox.events
     where org_id = any ($1) and ids ? 'job_id'`, [organisations]);
  return new Map(rows.map(({ job, event_id }) => [job, event_id]));
}

/** @typedef {{ org_id: string, event_id: string, ids: { job_id: number } }} Sent */

/**
 * The jobs of events, for each organisation in the order of their first arrival.
 *
 * @param {Sent[]} events
 * @returns {Record<string, number[]>}
 */
export function jobsByOrganisation(events) {
  /** @type {Record<string, Set<number>>} */
  const found = {};
  for (const { org_id, ids } of events) (found[org_id] ??= new Set()).add(ids.job_id);
  return Object.fromEntries(Object.entries(found).map(([org, jobs]) => [org, [...jobs]]));
}

/**
 * The same of jobs that were added with `addJobs`.
 *
 * @param {string[]} organisations
 * @param {number[]} jobs
 * @returns {Record<string, number[]>}
 */
export function expectedJobs(organisations, jobs) {
  const each = organisations.map((org, place) => [
    org, jobs.filter((_, index) => index % organisations.length === place),
  ]);
  return Object.fromEntries(each.filter(([, list]) => list.length > 0));
}

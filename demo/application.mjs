// @ts-check
/**
 * What the cataloguing application does in the database, always as the signed-in person: each
 * request is one transaction under the role `authenticated` with the person's claims and headers
 * as settings, which is how PostgREST runs a request. Row Level Security decides what it sees.
 */

const PAGE_SIZE = 10;
const BULK_SIZE = 10_000;
export const STATUSES = ['queued', 'in_progress', 'in_review', 'done'];

/** @typedef {import('pg').Pool} Pool */
/** @typedef {import('pg').ClientBase} Transaction */
/** @typedef {{ role: string, [claim: string]: unknown }} Claims */
/** @typedef {{ page?: string | null, status?: string | null, ids?: string | null }} JobFilter */

/**
 * @template T
 * @param {Pool} pool
 * @param {{ claims: Claims, headers: object }} person
 * @param {(transaction: Transaction) => Promise<T>} work
 * @returns {Promise<T>}
 */
export async function asPerson(pool, { claims, headers }, work) {
  const connection = await pool.connect();
  try {
    await connection.query('begin');
    await connection.query(
      `select set_config('role', 'authenticated', true),
              set_config('request.jwt.claims', $1, true),
              set_config('request.headers', $2, true)`,
      [JSON.stringify(claims), JSON.stringify(headers)],
    );
    const result = await work(connection);
    await connection.query('commit');
    return result;
  } catch (error) {
    await connection.query('rollback').catch(() => {}); // The first error is the one to tell.
    throw error;
  } finally {
    connection.release();
  }
}

const JOB = `
  select j.id, j.number, j.title, j.status, j.progress, j.updated_at, p.name as assignee,
         (select count(*)::int from public.flags f
          where f.job_id = j.id and not f.resolved) as flags
  from public.cataloging_jobs j
  left join public.people p on p.id = j.assignee`;

/**
 * A page of jobs, or those of the given ids, and how many there are of each status.
 *
 * @param {Transaction} transaction
 * @param {JobFilter} filter
 */
export async function listJobs(transaction, { page, status, ids }) {
  const counted = await transaction.query(
    'select status, count(*)::int as jobs from public.cataloging_jobs group by status',
  );
  const counts = Object.fromEntries(counted.rows.map((row) => [row.status, row.jobs]));
  const { rows: jobs } = ids
    ? await transaction.query(`${JOB} where j.id = any ($1)`, [ids.split(',')])
    : await transaction.query(
        `${JOB} where $1::text is null or j.status = $1 order by j.number limit $2 offset $3`,
        [status || null, PAGE_SIZE, PAGE_SIZE * Number(page ?? 0)],
      );
  return { jobs, counts, pageSize: PAGE_SIZE };
}

/**
 * @param {Transaction} transaction
 * @param {string} id
 * @param {string} status
 */
export async function setJobStatus(transaction, id, status) {
  await transaction.query('update public.cataloging_jobs set status = $2 where id = $1', [
    id,
    status,
  ]);
  const { rows } = await transaction.query(`${JOB} where j.id = $1`, [id]);
  return rows[0] ?? null;
}

/**
 * Moves the first jobs on to their next status, in one statement.
 *
 * @param {Transaction} transaction
 */
export async function advanceJobs(transaction) {
  const { rowCount } = await transaction.query(
    `update public.cataloging_jobs
     set status = case status
         when 'queued' then 'in_progress'
         when 'in_progress' then 'in_review'
         when 'in_review' then 'done'
         else 'queued'
     end
     where id in (select id from public.cataloging_jobs order by number limit $1)`,
    [BULK_SIZE],
  );
  return { changed: rowCount };
}

const FLAG = `
  select f.id, f.job_id, f.reason, f.raised_at, f.resolved, j.number, j.title, p.name as raised_by
  from public.flags f
  join public.cataloging_jobs j on j.id = f.job_id
  left join public.people p on p.id = f.raised_by`;

/**
 * A page of the open flags, newest first, or the flags of the given ids whatever they are.
 *
 * @param {Transaction} transaction
 * @param {{ page?: string | null, ids?: string | null }} filter
 */
export async function listFlags(transaction, { page, ids }) {
  const counted = await transaction.query(
    'select count(*)::int as open from public.flags where not resolved',
  );
  const { rows: flags } = ids
    ? await transaction.query(`${FLAG} where f.id = any ($1)`, [ids.split(',')])
    : await transaction.query(
        `${FLAG} where not f.resolved order by f.id desc limit $1 offset $2`,
        [PAGE_SIZE / 2, (PAGE_SIZE / 2) * Number(page ?? 0)],
      );
  return { flags, open: counted.rows[0].open, pageSize: PAGE_SIZE / 2 };
}

/**
 * @param {Transaction} transaction
 * @param {string} jobId
 * @param {string} reason
 */
export async function raiseFlag(transaction, jobId, reason) {
  const { rows } = await transaction.query(
    `insert into public.flags (org_id, job_id, reason, raised_by)
     select org_id, id, $2, auth.uid() from public.cataloging_jobs where id = $1
     returning id`,
    [jobId, reason],
  );
  return rows[0] ?? null;
}

/**
 * @param {Transaction} transaction
 * @param {string} id
 * @param {boolean} resolved
 */
export async function setFlagResolved(transaction, id, resolved) {
  const { rows } = await transaction.query(
    'update public.flags set resolved = $2 where id = $1 returning id, resolved',
    [id, resolved],
  );
  return rows[0] ?? null;
}

/**
 * Everybody who can sign in, by organisation. It is asked before anyone has, so as the owner.
 *
 * @param {Pool} pool
 */
export async function listPeople(pool) {
  const { rows } = await pool.query(
    `select p.id, p.name, m.duty, o.id as org_id, o.name as organisation
     from public.memberships m
     join public.people p on p.id = m.person_id
     join public.organisations o on o.id = m.org_id
     order by o.name, p.name`,
  );
  return rows;
}

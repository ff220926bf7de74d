// @ts-check
/** What must be true of a database that is not ours before the demo puts its tables there. */
import { readFile } from 'node:fs/promises';
import pg from 'pg';

const TABLES = ['organisations', 'people', 'memberships', 'cataloging_jobs', 'flags'];

/** A mistake of whoever starts the demo: the message is for them and needs no stack. */
export class DemoError extends Error {}

/**
 * Checks the database and takes away what an earlier demo, killed before its end, left in it.
 *
 * @param {string} url
 */
export async function prepareOwnDatabase(url) {
  const client = new pg.Client({ connectionString: url });
  try {
    await client.connect();
  } catch (error) {
    throw new DemoError(`cannot connect to DATABASE_URL: ${/** @type {Error} */ (error).message}`);
  }
  try {
    await requireExtension(client);
    await clearTables(client);
    await requireNoSink(client);
  } finally {
    await client.end();
  }
}

/** @param {pg.Client} client */
async function requireExtension(client) {
  const { rows } = await client.query(
    `select exists (select from pg_available_extensions where name = 'pg_outbox') as installed,
            current_setting('shared_preload_libraries') ~ '\\mpg_outbox\\M' as preloaded`,
  );
  if (!rows[0].installed) {
    throw new DemoError(
      'the server of DATABASE_URL has no pg_outbox. On that machine: make install PG_CONFIG=…',
    );
  }
  if (!rows[0].preloaded) {
    throw new DemoError(
      'the server of DATABASE_URL does not preload pg_outbox, so nothing would be sent. Add it ' +
        'to shared_preload_libraries in postgresql.conf and restart the server.',
    );
  }
}

/** @param {pg.Client} client */
async function clearTables(client) {
  const { rows } = await client.query(
    `select relname, obj_description(oid, 'pg_class') as comment
     from pg_class where relnamespace = 'public'::regnamespace and relname = any ($1)`,
    [TABLES],
  );
  if (rows.length === 0) return;
  if (rows.some(({ comment }) => comment === 'pg_outbox demo')) {
    await client.query(await readFile(new URL('teardown.sql', import.meta.url), 'utf8'));
    return;
  }
  const names = rows.map(({ relname }) => `public.${relname}`).join(', ');
  throw new DemoError(
    `the database of DATABASE_URL already has ${names}, and the demo makes tables of that name. ` +
      'Give it a database of its own: create database demo.',
  );
}

/** @param {pg.Client} client */
async function requireNoSink(client) {
  const { rows: installed } = await client.query(`select to_regclass('outbox.status') as status`);
  if (installed[0].status === null) return;
  const { rows } = await client.query(`select from outbox.status where sink = 'realtime'`);
  if (rows.length === 0) return;
  throw new DemoError(
    "the database of DATABASE_URL already has a sink called 'realtime', which the demo would " +
      'change. Give it a database of its own: create database demo.',
  );
}

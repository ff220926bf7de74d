// @ts-check
/**
 * Sending from Postgres: rows of `realtime.messages` are broadcast when they have committed.
 *
 * They are read from a temporary logical replication slot that starts with the first join and at
 * "now": what was inserted while nobody was connected is never sent. A server whose wal_level is
 * not `logical` has no slot to give: then nothing is sent from SQL, as one line of the log says.
 */
import { randomBytes } from 'node:crypto';
import pg from 'pg';
import { binarySize, isTooLarge, payloadSize } from './payload_size.mjs';
import { readMessage, statusUpdate } from './pgoutput.mjs';

const PUBLICATION = 'supabase_realtime_messages_publication';
const SLOT_PREFIX = 'supabase_realtime_messages_replication_slot';
const DUPLICATE_OBJECT = '42710';

export class Tail {
  #url;
  #tenant;
  #options;
  /** @type {pg.Client | null} */
  #client = null;
  /** @type {Promise<'ready'> | null} */
  #started = null;
  /** @type {Map<number, string[]>} the columns of each relation that the stream has named */
  #relations = new Map();

  /**
   * @param {string} url
   * @param {import('./tenant.mjs').Tenant} tenant
   * @param {import('./options.mjs').Options} options
   */
  constructor(url, tenant, options) {
    this.#url = url;
    this.#tenant = tenant;
    this.#options = options;
  }

  /** Begins to read, unless it does already. It never fails: what is wrong is logged. */
  start() {
    if (this.#started) return;
    this.#started = this.#open().catch((error) => {
      this.#options.log(`no messages from the database: ${error.message}`);
      return new Promise(() => {});
    });
  }

  /** Resolves when rows are being read; it may never. */
  async ready() {
    this.start();
    return this.#started;
  }

  async stop() {
    const client = this.#client;
    this.#client = null;
    this.#started = Promise.resolve('ready'); // Nothing starts again.
    await client?.end().catch(() => {});
  }

  /** @returns {Promise<'ready'>} */
  async #open() {
    const config = { connectionString: this.#url, replication: 'database' };
    const client = new pg.Client(/** @type {pg.ClientConfig} */ (config));
    this.#client = client;
    client.on('error', () => {}); // The end of the connection follows.
    client.on('end', () => {
      if (this.#client !== client) return;
      this.#client = null;
      this.#started = null; // The next join tries again.
      this.#options.log('the connection that reads messages ended');
    });
    await client.connect();
    await createPublication(client);
    const slot = `${SLOT_PREFIX}_${randomBytes(4).toString('hex')}`;
    // The grammar of replication commands knows upper case only.
    await client.query(
      `CREATE_REPLICATION_SLOT ${slot} TEMPORARY LOGICAL pgoutput NOEXPORT_SNAPSHOT`,
    );

    const { connection } = /** @type {any} */ (client);
    connection.on('copyData', (/** @type {{ chunk: Buffer }} */ { chunk }) => {
      this.#read(chunk, (/** @type {Buffer} */ status) => connection.sendCopyFromChunk(status));
    });
    const streaming = new Promise((resolve) => connection.once('replicationStart', resolve));
    const failed = client.query(
      `START_REPLICATION SLOT ${slot} LOGICAL 0/0
         (proto_version '1', publication_names '${PUBLICATION}')`,
    );
    failed.catch(() => {}); // After the start it is the connection that ends.
    await Promise.race([streaming, failed]);
    return 'ready';
  }

  /**
   * @param {Buffer} chunk
   * @param {(status: Buffer) => void} answer
   */
  #read(chunk, answer) {
    const { position, wantsReply, row } = readMessage(chunk, this.#relations);
    if (wantsReply) answer(statusUpdate(position));
    if (row?.extension !== 'broadcast' || row.event === null || row.topic === null) return;
    try {
      this.#send(row);
    } catch (error) {
      this.#options.log(`message ${row.id} dropped: ${/** @type {Error} */ (error).message}`);
    }
  }

  /** @param {Record<string, any>} row */
  #send({ id, topic, event, private: isPrivate, payload, binary_payload: binary }) {
    const isBinary = binary !== null;
    const text = isBinary ? binary.slice('\\x'.length) : (payload ?? 'null');
    const bytes = Buffer.from(text, isBinary ? 'hex' : 'utf8');
    const { payloadKb } = this.#tenant.limits;
    const size = isBinary ? binarySize(bytes) : payloadSize(JSON.parse(text));
    if (payloadKb !== null && isTooLarge(size, payloadKb)) throw new Error('it is too large');
    if (this.#tenant.isOverrun) throw new Error('there are too many messages per second');
    this.#tenant.broadcast({
      topic,
      isPrivate: isPrivate === 't',
      id,
      content: { form: 'user', event, isBinary, bytes, meta: { id } },
    });
  }
}

/** @param {pg.Client} client */
async function createPublication(client) {
  // On a replication connection there are no parameters, and no DO block could be simpler.
  const { rows } = await client.query(
    `select from pg_publication where pubname = '${PUBLICATION}'`,
  );
  if (rows.length > 0) return;
  try {
    await client.query(
      `create publication ${PUBLICATION} for table realtime.messages
         with (publish = 'insert', publish_via_partition_root = true)`,
    );
  } catch (error) {
    if (/** @type {any} */ (error).code !== DUPLICATE_OBJECT) throw error;
  }
}

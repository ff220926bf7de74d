// @ts-check
/**
 * The size of a payload as Realtime measures it: bytes of the decoded value in Erlang's external
 * term format, not of its JSON.
 */

/** What a binary costs beside its bytes: a tag and a length; with it the format's version. */
const BINARY_OVERHEAD = 6;
/** The limit is given in kB, and this much more passes. */
const TOLERANCE_BYTES = 500;

/**
 * @param {number} sizeBytes
 * @param {number} limitKb
 */
export const isTooLarge = (sizeBytes, limitKb) => sizeBytes > limitKb * 1000 + TOLERANCE_BYTES;

/** @param {unknown} payload what JSON.parse returned */
export const payloadSize = (payload) => 1 + termSize(payload);

/** @param {Uint8Array} bytes */
export const binarySize = (bytes) => bytes.length + BINARY_OVERHEAD;

/**
 * @param {unknown} value
 * @returns {number}
 */
function termSize(value) {
  if (typeof value === 'string') return 5 + Buffer.byteLength(value);
  if (typeof value === 'number') return Number.isInteger(value) ? integerSize(value) : 9;
  if (value === null) return 5;
  if (typeof value === 'boolean') return value ? 6 : 7;
  if (Array.isArray(value)) {
    return value.length === 0 ? 1 : value.reduce((sum, item) => sum + termSize(item), 6);
  }
  return Object.entries(/** @type {object} */ (value)).reduce(
    (sum, [key, item]) => sum + 5 + Buffer.byteLength(key) + termSize(item),
    5,
  );
}

/** @param {number} value */
function integerSize(value) {
  if (value >= 0 && value <= 255) return 2;
  if (value >= -(2 ** 31) && value < 2 ** 31) return 5;
  return 3 + Math.ceil(Math.log2(Math.abs(value) + 1) / 8);
}

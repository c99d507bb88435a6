"use strict";
// Announces notes that others have added since this page was made.
const live = document.getElementById("live");
const source = new EventSource("/events?after=" + live.dataset.after);
let seen = 0;
source.onmessage = (event) => {
  const note = JSON.parse(event.data);
  seen++;
  const link = document.createElement("a");
  link.href = "/";
  link.textContent = seen === 1 ? `New: ${note.title}` : `${seen} new notes, the last one: ${note.title}`;
  live.replaceChildren(link);
};
// A page in the back-forward cache must not keep one of the browser's six connections.
window.addEventListener("pagehide", () => source.close());
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

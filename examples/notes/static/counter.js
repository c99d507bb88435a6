"use strict";
const show = (id, text) => { document.getElementById(id).textContent = text; };
const read = async () => (await fetch("/api/counter", { cache: "no-store" })).json();

const hammer = document.getElementById("hammer");
hammer.hidden = false;
hammer.addEventListener("click", async () => {
  hammer.disabled = true;
  try {
    const before = await read();
    const answers = await Promise.all(
      Array.from({ length: 100 }, () => fetch("/api/counter", { method: "POST" })));
    const ok = answers.filter((answer) => answer.ok).length;
    const after = await read();
    show("value", after.value);
    show("again", after.again);
    show("result", `${ok} of 100 answered 200; the counter went from ${before.value} to ${after.value}.`);
  } catch (err) {
    show("result", `The service did not answer: ${err.message}`);
  }
  hammer.disabled = false;
});

"""A Payment Kit for tests: its wire format, its books, a journal of all it applied, and faults on demand.

It stands in for a service outside the hub. Requests are as the vectors in `fixtures/` have them (recorded from
`@blocklet/payment-js` 1.27.2 and `@blocklet/sdk` 1.17.12); answers follow the published types, since none was recorded.
"""
